"""Calendar arithmetic on datetime.date."""

import re
from datetime import date, timedelta

from timespan.errors import DateError

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})$")
_DAY_FIRST = re.compile(r"(\d{1,2})\.?\s+([a-z]+)\.?,?\s+(\d{4})$")
_MONTH_FIRST = re.compile(r"([a-z]+)\.?\s+(\d{1,2}),?\s+(\d{4})$")


def is_leap(year):
    """True for leap years of the Gregorian calendar."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(year, month):
    """Number of days in a month, 1 to 12."""
    if not 1 <= month <= 12:
        raise DateError(f"month must be 1..12, not {month}")
    if month == 2:
        return 29 if is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def month_number(name):
    """1..12 for an English month name or its first three or more letters."""
    prefix = name.strip().lower()[:3]
    if len(prefix) < 3 or prefix not in MONTHS:
        raise DateError(f"unknown month {name!r}", name)
    return MONTHS.index(prefix) + 1


def parse_date(text):
    """A date from "2024-02-29", "29 Feb 2024" or "Feb 29, 2024"."""
    cleaned = text.strip().lower()
    match = _ISO.match(cleaned)
    if match:
        year, month, day = (int(group) for group in match.groups())
        return _checked(year, month, day, text)
    match = _DAY_FIRST.match(cleaned)
    if match:
        return _checked(int(match.group(3)), month_number(match.group(2)), int(match.group(1)), text)
    match = _MONTH_FIRST.match(cleaned)
    if match:
        return _checked(int(match.group(3)), month_number(match.group(1)), int(match.group(2)), text)
    raise DateError(f"cannot read date {text!r}", text)


def _checked(year, month, day, text):
    try:
        return date(year, month, day)
    except ValueError as error:
        raise DateError(f"{text!r}: {error}", text) from None


def add_months(day, months):
    """The same day `months` later (or earlier); the last day of the month where that day does not exist."""
    index = day.year * 12 + (day.month - 1) + months
    year, month = index // 12, index % 12 + 1
    return date(year, month, min(day.day, days_in_month(year, month)))


def quarter(day):
    """Quarter of the year, 1 to 4."""
    return (day.month - 1) // 3 + 1


def quarter_bounds(day):
    """First and last day of the quarter that holds `day`."""
    first_month = (quarter(day) - 1) * 3 + 1
    first = date(day.year, first_month, 1)
    return first, add_months(first, 3) - timedelta(days=1)


def week_start(day, first_weekday=0):
    """The first day of the week that holds `day`; weekdays count from 0 (Monday) to 6 (Sunday)."""
    return day - timedelta(days=(day.weekday() - first_weekday) % 7)


def age(born, today):
    """Completed years between two dates."""
    had_birthday = (today.month, today.day) >= (born.month, born.day)
    return today.year - born.year - (0 if had_birthday else 1)
