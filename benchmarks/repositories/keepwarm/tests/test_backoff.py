import pytest

from keepwarm.backoff import Backoff, GaveUp, call_with_retries, parse_retry_after


def test_delays_grow():
    backoff = Backoff(base=1, factor=2)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 8]


def test_reset():
    backoff = Backoff()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 1.0


def test_total():
    assert Backoff(base=1, factor=2).total(4) == 7


def test_retry_after():
    assert parse_retry_after("120") == 120.0
    assert parse_retry_after(None, 5) == 5


def test_success_at_the_second_call():
    waits = []
    answers = iter([ValueError("no"), "yes"])

    def function():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert call_with_retries(function, sleep=waits.append) == "yes"
    assert waits == [1.0]


def test_gives_up():
    def function():
        raise ValueError("no")

    with pytest.raises(GaveUp) as caught:
        call_with_retries(function, attempts=2, sleep=lambda seconds: None)
    assert caught.value.attempts == 2


def test_other_errors_are_raised_at_once():
    calls = []

    def function():
        calls.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        call_with_retries(function, retry_on=(ValueError,), sleep=lambda seconds: None)
    assert calls == [1]
