"""Waiting longer and longer between attempts."""

import time


class GaveUp(Exception):
    """All attempts failed; `last` is the last error, `attempts` how many there were."""

    def __init__(self, attempts, last):
        super().__init__(f"gave up after {attempts} attempts: {last}")
        self.attempts = attempts
        self.last = last


class Backoff:
    """Delays base, base*factor, base*factor**2, ... never above `maximum`.

    `jitter` is the largest share of a delay that is taken off at random; `rng()` gives numbers in [0, 1).
    """

    def __init__(self, base=1.0, factor=2.0, maximum=60.0, jitter=0.0, rng=None):
        if base <= 0 or factor < 1:
            raise ValueError("base must be positive and factor at least 1")
        self.base = base
        self.factor = factor
        self.maximum = maximum
        self.jitter = jitter
        self._rng = rng
        self.attempt = 0

    def delay(self, attempt):
        """Seconds to wait after failed attempt number `attempt` (the first is 0)."""
        seconds = min(self.base * self.factor**attempt, self.maximum)
        if self.jitter and self._rng is not None:
            seconds -= seconds * self.jitter * self._rng()
        return seconds

    def next(self):
        """The delay for this failure; the one after it will be longer."""
        seconds = self.delay(self.attempt)
        self.attempt += 1
        return seconds

    def reset(self):
        """Start again with the shortest delay."""
        self.attempt = 0

    def total(self, attempts):
        """Seconds waited in all between `attempts` attempts, without jitter."""
        return sum(min(self.base * self.factor**n, self.maximum) for n in range(attempts - 1))


def parse_retry_after(value, default=None):
    """Seconds of a Retry-After header given in seconds; the default for anything else, 0 for negative ones."""
    if value is None:
        return default
    try:
        return max(0.0, float(value.strip()))
    except ValueError:
        return default


def call_with_retries(function, attempts=3, backoff=None, retry_on=(Exception,), sleep=time.sleep):
    """The result of `function()`, called up to `attempts` times with a delay between the calls.

    Only errors in `retry_on` are retried; others are raised at once. Raises GaveUp when all attempts failed.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    waits = backoff or Backoff()
    for number in range(attempts):
        try:
            return function()
        except retry_on as error:
            last = error
        if number < attempts - 1:
            sleep(waits.delay(number))
    raise GaveUp(attempts, last)
