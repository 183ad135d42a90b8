from keepwarm.lru import LRUCache


def filled():
    cache = LRUCache(3)
    for number, key in enumerate("abc"):
        cache.put(key, number)
    return cache


def test_get_makes_an_entry_the_newest():
    cache = filled()
    assert cache.get("a") == 0
    assert cache.keys() == ["b", "c", "a"]
    cache.put("d", 3)
    assert cache.keys() == ["c", "a", "d"]
    assert cache.get("b", "gone") == "gone"
    assert cache.keys() == ["c", "a", "d"]


def test_peek_and_in_do_not():
    cache = filled()
    assert cache.peek("a") == 0
    assert "b" in cache
    assert cache.keys() == ["a", "b", "c"]


def test_counters():
    cache = filled()
    cache.put("n", None)
    assert cache.get("n", "default") is None
    cache.get("zzz")
    assert (cache.hits, cache.misses) == (1, 1)
