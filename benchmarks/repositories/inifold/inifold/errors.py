"""Errors raised by this package."""


class ConfigError(Exception):
    """The configuration cannot be read. `line` is the 1-based line number, or None."""

    def __init__(self, message, line=None):
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class MissingKey(ConfigError):
    """A key that is needed is not there."""
