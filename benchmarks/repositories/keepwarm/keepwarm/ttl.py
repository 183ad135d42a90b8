"""A dictionary whose entries expire, and a decorator on top of it."""

import functools
import time

from keepwarm.keys import call_key


class TTLCache:
    """Entries live for `ttl` seconds after they were stored; at that very second they are gone."""

    def __init__(self, ttl, clock=time.monotonic):
        if ttl <= 0:
            raise ValueError(f"ttl must be positive, not {ttl}")
        self.ttl = ttl
        self._clock = clock
        self._entries = {}

    def set(self, key, value, ttl=None):
        """Store a value, for its own `ttl` when one is given; 0 stores nothing."""
        life = self.ttl if ttl is None else ttl
        if life <= 0:
            self._entries.pop(key, None)
            return
        self._entries[key] = (value, self._clock() + life)

    def get(self, key, default=None):
        """The value while it lives, else the default."""
        if key not in self._entries:
            return default
        value, expires = self._entries[key]
        if self._clock() >= expires:
            del self._entries[key]
            return default
        return value

    def __contains__(self, key):
        entry = self._entries.get(key)
        return entry is not None and self._clock() < entry[1]

    def __len__(self):
        """Number of living entries."""
        now = self._clock()
        return sum(1 for _, expires in self._entries.values() if now < expires)

    def remaining(self, key):
        """Seconds a key has left, or None when it is not there."""
        if key not in self:
            return None
        return self._entries[key][1] - self._clock()

    def touch(self, key, ttl=None):
        """Let a living entry start its life again; True when it was there."""
        if key not in self:
            return False
        value, _ = self._entries[key]
        self._entries[key] = (value, self._clock() + (self.ttl if ttl is None else ttl))
        return True

    def purge(self):
        """Drop expired entries and return how many there were."""
        now = self._clock()
        dead = [key for key, (_, expires) in self._entries.items() if now >= expires]
        for key in dead:
            del self._entries[key]
        return len(dead)


def memoize(ttl, clock=time.monotonic):
    """Decorator: remember results per arguments for `ttl` seconds; exceptions are not remembered."""

    def decorate(function):
        cache = TTLCache(ttl, clock)
        missing = object()

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            key = call_key(args, kwargs)
            found = cache.get(key, missing)
            if found is not missing:
                return found
            result = function(*args, **kwargs)
            cache.set(key, result)
            return result

        wrapper.cache = cache
        return wrapper

    return decorate
