"""Durations, dates and intervals."""

from timespan.business import Calendar
from timespan.dates import add_months, days_in_month, parse_date, quarter, week_start
from timespan.durations import format_clock, format_duration, parse_duration
from timespan.errors import DateError, DurationError, TimespanError
from timespan.intervals import Interval, gaps, merge
from timespan.relative import describe, resolve

__all__ = [
    "Calendar",
    "DateError",
    "DurationError",
    "Interval",
    "TimespanError",
    "add_months",
    "days_in_month",
    "describe",
    "format_clock",
    "format_duration",
    "gaps",
    "merge",
    "parse_date",
    "parse_duration",
    "quarter",
    "resolve",
    "week_start",
]
