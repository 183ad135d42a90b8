"""Durations: text such as "1d 4h 30m" to whole seconds and back."""

import re

from timespan.errors import DurationError

UNITS = {
    "w": 7 * 24 * 3600,
    "d": 24 * 3600,
    "h": 3600,
    "m": 60,
    "s": 1,
}

ALIASES = {
    "week": "w",
    "weeks": "w",
    "day": "d",
    "days": "d",
    "hour": "h",
    "hours": "h",
    "hr": "h",
    "hrs": "h",
    "minute": "m",
    "minutes": "m",
    "min": "m",
    "mins": "m",
    "second": "s",
    "seconds": "s",
    "sec": "s",
    "secs": "s",
}

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


def unit_seconds(name):
    """Seconds in one unit; `name` is a short or a long unit name in any case."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in UNITS:
        raise DurationError(f"unknown unit {name!r}", name)
    return UNITS[key]


def parse_duration(text):
    """Seconds (int) of a duration text.

    Accepts "90", "90s", "1h 30m", "1.5h", "-2d", "1:30" and "1:02:03" (clock form).
    """
    cleaned = text.strip().lower()
    if not cleaned:
        raise DurationError("empty duration", text)
    sign = 1
    if cleaned[0] in "+-":
        sign = -1 if cleaned[0] == "-" else 1
        cleaned = cleaned[1:].lstrip()
    if ":" in cleaned:
        return sign * _parse_clock(cleaned)
    if cleaned.isdigit():
        return sign * int(cleaned)
    return sign * _parse_units(cleaned)


def _parse_units(text):
    total = 0.0
    end = 0
    for match in _PART.finditer(text):
        between = text[end : match.start()]
        if between.strip(" ,"):
            raise DurationError(f"cannot read {between.strip()!r}", text)
        total += float(match.group(1)) * unit_seconds(match.group(2))
        end = match.end()
    if end == 0 or text[end:].strip():
        raise DurationError(f"cannot read duration {text!r}", text)
    return round(total)


def _parse_clock(text):
    fields = text.split(":")
    if len(fields) > 3 or not all(field.strip().isdigit() for field in fields):
        raise DurationError(f"cannot read clock time {text!r}", text)
    numbers = [int(field) for field in fields]
    if any(number >= 60 for number in numbers[1:]):
        raise DurationError(f"minutes and seconds stop at 59: {text!r}", text)
    if len(numbers) == 2:
        numbers.append(0)
    hours, minutes, seconds = numbers
    return hours * 3600 + minutes * 60 + seconds


def format_duration(seconds, parts=2):
    """Short text of at most `parts` units, largest first: 93784 -> "1d 2h"."""
    if seconds < 0:
        return "-" + format_duration(-seconds, parts)
    rest = int(seconds)
    pieces = []
    for name, size in UNITS.items():
        count, rest = divmod(rest, size)
        if count:
            pieces.append(f"{count}{name}")
    if not pieces:
        return "0s"
    return " ".join(pieces[:parts])


def format_clock(seconds):
    """Clock text "H:MM:SS"; hours are not limited to 24."""
    sign = "-" if seconds < 0 else ""
    minutes, rest = divmod(abs(int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours}:{minutes:02d}:{rest:02d}"
