"""Errors raised by this package."""


class TimespanError(ValueError):
    """Base class: the input cannot be understood."""

    def __init__(self, message, text=None):
        super().__init__(message)
        self.text = text


class DurationError(TimespanError):
    """A duration such as "1h 30m" is malformed."""


class DateError(TimespanError):
    """A date is malformed or does not exist."""
