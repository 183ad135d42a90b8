import pytest

from keepwarm.lru import LRUCache


def test_capacity():
    with pytest.raises(ValueError):
        LRUCache(0)


def test_oldest_goes_first():
    cache = LRUCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.put("c", 3)
    assert "a" not in cache
    assert cache.keys() == ["b", "c"]


def test_reading_is_use():
    cache = LRUCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert cache.keys() == ["a", "c"]


def test_put_replaces():
    cache = LRUCache(2)
    cache.put("a", 1)
    cache.put("a", 2)
    assert cache.get("a") == 2
    assert len(cache) == 1


def test_on_evict():
    gone = []
    cache = LRUCache(1, on_evict=lambda key, value: gone.append((key, value)))
    cache.put("a", 1)
    cache.put("b", 2)
    assert gone == [("a", 1)]


def test_hit_rate():
    cache = LRUCache(1)
    assert cache.hit_rate() == 0.0
    cache.put("a", 1)
    cache.get("a")
    cache.get("b")
    assert cache.hit_rate() == 0.5


def test_resize():
    cache = LRUCache(3)
    for key in "abc":
        cache.put(key, key)
    cache.resize(2)
    assert cache.keys() == ["b", "c"]


def test_remove():
    cache = LRUCache(1)
    cache.put("a", 1)
    assert cache.remove("a") is True
    assert cache.remove("a") is False


def test_clear():
    cache = LRUCache(1)
    cache.put("a", 1)
    cache.clear()
    assert len(cache) == 0
