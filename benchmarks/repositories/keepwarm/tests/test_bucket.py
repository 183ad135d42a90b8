import pytest

from keepwarm.bucket import KeyedLimiter, SlidingWindow, TokenBucket


def test_burst_then_refused(clock):
    bucket = TokenBucket(1, 3, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_refill(clock):
    bucket = TokenBucket(2, 10, clock)
    bucket.take(10)
    clock.advance(3)
    assert bucket.tokens == 6


def test_wait_time(clock):
    bucket = TokenBucket(2, 10, clock)
    assert bucket.wait_time(4) == 0
    bucket.take(10)
    assert bucket.wait_time(4) == 2
    with pytest.raises(ValueError):
        bucket.wait_time(11)


def test_window(clock):
    window = SlidingWindow(2, 10, clock)
    assert window.allow()
    assert window.allow()
    assert not window.allow()
    clock.advance(11)
    assert window.allow()


def test_window_retry_after(clock):
    window = SlidingWindow(1, 10, clock)
    assert window.retry_after() == 0
    window.allow()
    clock.advance(4)
    assert window.retry_after() == 6


def test_keys_have_their_own_window(clock):
    limiter = KeyedLimiter(1, 10, clock)
    assert limiter.allow("ann")
    assert limiter.allow("bob")
    assert not limiter.allow("ann")
    assert limiter.blocked() == ["ann", "bob"]
