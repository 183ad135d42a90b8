"""Rate limits: a token bucket and a sliding window."""

import time
from collections import deque


class TokenBucket:
    """Allows bursts of `capacity` and `rate` per second in the long run. It starts full."""

    def __init__(self, rate, capacity, clock=time.monotonic):
        if rate <= 0 or capacity <= 0:
            raise ValueError("rate and capacity must be positive")
        self.rate = rate
        self.capacity = capacity
        self._clock = clock
        self._tokens = capacity
        self._updated = clock()

    def _refill(self):
        now = self._clock()
        self._tokens = min(self.capacity, self._tokens + (now - self._updated) * self.rate)
        self._updated = now

    @property
    def tokens(self):
        """Tokens that are there now."""
        self._refill()
        return self._tokens

    def take(self, count=1):
        """Take tokens; False (and nothing taken) when there are too few."""
        self._refill()
        if count > self._tokens:
            return False
        self._tokens -= count
        return True

    def wait_time(self, count=1):
        """Seconds until `count` tokens are there; 0 when they are. Raises ValueError above the capacity."""
        if count > self.capacity:
            raise ValueError(f"{count} tokens never fit into a bucket of {self.capacity}")
        self._refill()
        missing = count - self._tokens
        return max(0.0, missing / self.rate)


class SlidingWindow:
    """At most `limit` events in any `seconds` long window; an event is forgotten when it is `seconds` old."""

    def __init__(self, limit, seconds, clock=time.monotonic):
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._events = deque()

    def _forget(self, now):
        while self._events and self._events[0] <= now - self.seconds:
            self._events.popleft()

    def allow(self):
        """Note an event when there is room; refused events do not count."""
        now = self._clock()
        self._forget(now)
        if len(self._events) >= self.limit:
            return False
        self._events.append(now)
        return True

    def remaining(self):
        """Events that would be allowed right now."""
        self._forget(self._clock())
        return self.limit - len(self._events)

    def retry_after(self):
        """Seconds until the next event is allowed; 0 when one is allowed now."""
        now = self._clock()
        self._forget(now)
        if len(self._events) < self.limit:
            return 0
        return self._events[0] + self.seconds - now


class KeyedLimiter:
    """One sliding window per key, for example per user."""

    def __init__(self, limit, seconds, clock=time.monotonic):
        self._make = lambda: SlidingWindow(limit, seconds, clock)
        self._windows = {}

    def allow(self, key):
        if key not in self._windows:
            self._windows[key] = self._make()
        return self._windows[key].allow()

    def blocked(self):
        """Keys that would be refused now, sorted."""
        return sorted(key for key, window in self._windows.items() if window.remaining() == 0)
