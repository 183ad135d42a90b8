"""Relative dates: describing a moment ("3 days ago") and resolving words ("next friday")."""

import re
from datetime import timedelta

from timespan.dates import add_months, parse_date
from timespan.errors import DateError

WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]

STEPS = [
    ("year", 365 * 86400),
    ("month", 30 * 86400),
    ("week", 7 * 86400),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
]

_COUNTED = re.compile(r"(\d+|an?)\s+(day|week|month|year)s?$")


def plural(count, noun):
    """A count with its noun: "1 day", "2 days", "0 days"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def describe(moment, now):
    """Words for the distance of two datetimes: "just now", "2 hours ago", "in 3 days"."""
    seconds = (now - moment).total_seconds()
    distance = abs(seconds)
    for noun, size in STEPS:
        if distance >= size:
            text = plural(int(distance // size), noun)
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "just now"


def describe_days(day, today):
    """One of "today", "yesterday", "tomorrow", a weekday name within the next six days, else the ISO date."""
    difference = (day - today).days
    if difference == 0:
        return "today"
    if difference == -1:
        return "yesterday"
    if difference == 1:
        return "tomorrow"
    if 1 < difference < 7:
        return WEEKDAYS[day.weekday()]
    return day.isoformat()


def resolve(text, today):
    """The date that words mean, seen from `today`.

    Understands "today", "tomorrow", "yesterday", "friday" and "next friday" (the first one after
    today), "last friday", "in 3 days", "2 weeks ago" and everything `parse_date` reads.
    """
    words = " ".join(text.lower().split())
    fixed = {"today": 0, "tomorrow": 1, "yesterday": -1}
    if words in fixed:
        return today + timedelta(days=fixed[words])
    if words.startswith("in "):
        return _counted(words[3:], 1, today, text)
    if words.endswith(" ago"):
        return _counted(words[:-4], -1, today, text)
    direction, _, name = words.rpartition(" ")
    if name in WEEKDAYS and direction in ("", "next", "last"):
        return _weekday(WEEKDAYS.index(name), direction, today)
    return parse_date(text)


def _weekday(index, direction, today):
    if direction == "last":
        return today - timedelta(days=(today.weekday() - index - 1) % 7 + 1)
    return today + timedelta(days=(index - today.weekday() - 1) % 7 + 1)


def _counted(words, sign, today, text):
    match = _COUNTED.match(words.strip())
    if not match:
        raise DateError(f"cannot read {text!r}", text)
    number = 1 if match.group(1).startswith("a") else int(match.group(1))
    unit = match.group(2)
    if unit == "month":
        return add_months(today, sign * number)
    if unit == "year":
        return add_months(today, sign * number * 12)
    return today + timedelta(days=sign * number * (7 if unit == "week" else 1))
