"""A dictionary with room for a fixed number of entries."""

_MISSING = object()


class LRUCache:
    """Forgets the entry that was used least recently. Reading and writing count as use, `in` and `peek` do not.

    `on_evict(key, value)` is called for entries that had to make room.
    """

    def __init__(self, capacity, on_evict=None):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.on_evict = on_evict
        self.hits = 0
        self.misses = 0
        self._entries = {}

    def __len__(self):
        return len(self._entries)

    def __contains__(self, key):
        return key in self._entries

    def keys(self):
        """Keys from least to most recently used."""
        return list(self._entries)

    def get(self, key, default=None):
        """The value, which becomes the most recently used, or the default."""
        value = self._entries.pop(key, _MISSING)
        if value is _MISSING:
            self.misses += 1
            return default
        self.hits += 1
        self._entries[key] = value
        return value

    def peek(self, key, default=None):
        """The value without touching its place or the counters."""
        return self._entries.get(key, default)

    def put(self, key, value):
        """Store a value; evicts when the cache is full."""
        self._entries.pop(key, None)
        while len(self._entries) >= self.capacity:
            self._evict()
        self._entries[key] = value

    def _evict(self):
        key = next(iter(self._entries))
        value = self._entries.pop(key)
        if self.on_evict is not None:
            self.on_evict(key, value)

    def resize(self, capacity):
        """Change the capacity; the least recently used entries go when it shrinks."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        while len(self._entries) > capacity:
            self._evict()

    def remove(self, key):
        """Forget one key; True when it was there. `on_evict` is not called."""
        return self._entries.pop(key, _MISSING) is not _MISSING

    def clear(self):
        """Forget everything, the counters too."""
        self._entries.clear()
        self.hits = 0
        self.misses = 0

    def hit_rate(self):
        """Share of reads that found something, 0.0 before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0
