import pytest

from keepwarm.ttl import TTLCache, memoize


def test_entries_expire(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1)
    clock.advance(9)
    assert cache.get("a") == 1
    clock.advance(2)
    assert cache.get("a") is None


def test_own_ttl(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1, ttl=100)
    clock.advance(50)
    assert cache.get("a") == 1


def test_length_counts_the_living(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1)
    clock.advance(6)
    cache.set("b", 2)
    clock.advance(6)
    assert len(cache) == 1


def test_remaining(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1)
    clock.advance(4)
    assert cache.remaining("a") == 6
    assert cache.remaining("b") is None


def test_touch(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1)
    clock.advance(8)
    assert cache.touch("a")
    clock.advance(8)
    assert "a" in cache
    assert not cache.touch("b")


def test_purge(clock):
    cache = TTLCache(10, clock)
    cache.set("a", 1)
    clock.advance(20)
    cache.set("b", 1)
    assert cache.purge() == 1


def test_memoize(clock):
    calls = []

    @memoize(10, clock)
    def double(x):
        calls.append(x)
        return 2 * x

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert calls == [2, 3]
    clock.advance(11)
    double(2)
    assert calls == [2, 3, 2]


def test_ttl_must_be_positive():
    with pytest.raises(ValueError):
        TTLCache(0)
