"""Caches and clocks."""

from keepwarm.backoff import Backoff, GaveUp, call_with_retries
from keepwarm.bucket import SlidingWindow, TokenBucket
from keepwarm.keys import call_key
from keepwarm.lru import LRUCache
from keepwarm.schedule import Scheduler
from keepwarm.ttl import TTLCache, memoize
from keepwarm.versions import Version, satisfies

__all__ = [
    "Backoff",
    "GaveUp",
    "LRUCache",
    "Scheduler",
    "SlidingWindow",
    "TTLCache",
    "TokenBucket",
    "Version",
    "call_key",
    "call_with_retries",
    "memoize",
    "satisfies",
]
