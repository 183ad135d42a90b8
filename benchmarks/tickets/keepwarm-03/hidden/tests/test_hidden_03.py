from keepwarm.lru import LRUCache


def test_clear_forgets_the_counters():
    cache = LRUCache(2)
    cache.put("a", 1)
    for key in ("a", "a", "a", "b"):
        cache.get(key)
    assert cache.hit_rate() == 0.75
    cache.clear()
    assert cache.hit_rate() == 0.0
    assert (cache.hits, cache.misses, len(cache)) == (0, 0, 0)
    cache.get("a")
    assert (cache.hits, cache.misses) == (0, 1)


def test_nothing_is_evicted_by_clear():
    gone = []
    cache = LRUCache(2, on_evict=lambda *pair: gone.append(pair))
    cache.put("a", 1)
    cache.clear()
    assert gone == []
