from datetime import date, datetime, timedelta

import pytest

from timespan.errors import DateError
from timespan.relative import describe, describe_days, resolve

NOW = datetime(2024, 5, 15, 12, 0)
TODAY = date(2024, 5, 15)  # a Wednesday


def test_describe_past_and_future():
    assert describe(NOW - timedelta(hours=2), NOW) == "2 hours ago"
    assert describe(NOW + timedelta(days=3), NOW) == "in 3 days"
    assert describe(NOW - timedelta(seconds=20), NOW) == "just now"


def test_describe_one_unit():
    assert describe(NOW - timedelta(minutes=1), NOW) == "1 minute ago"


def test_describe_days():
    assert describe_days(TODAY, TODAY) == "today"
    assert describe_days(date(2024, 5, 16), TODAY) == "tomorrow"
    assert describe_days(date(2024, 5, 19), TODAY) == "sunday"
    assert describe_days(date(2024, 6, 19), TODAY) == "2024-06-19"


def test_resolve_words():
    assert resolve("Tomorrow", TODAY) == date(2024, 5, 16)
    assert resolve("yesterday", TODAY) == date(2024, 5, 14)


def test_resolve_weekdays():
    assert resolve("next friday", TODAY) == date(2024, 5, 17)
    assert resolve("monday", TODAY) == date(2024, 5, 20)
    assert resolve("last monday", TODAY) == date(2024, 5, 13)


def test_resolve_weekday_of_today_is_another_week():
    assert resolve("next wednesday", TODAY) == date(2024, 5, 22)
    assert resolve("last wednesday", TODAY) == date(2024, 5, 8)


def test_resolve_counted():
    assert resolve("in 3 days", TODAY) == date(2024, 5, 18)
    assert resolve("2 weeks ago", TODAY) == date(2024, 5, 1)
    assert resolve("in a month", TODAY) == date(2024, 6, 15)


def test_resolve_falls_back_to_dates():
    assert resolve("2024-01-02", TODAY) == date(2024, 1, 2)
    with pytest.raises(DateError):
        resolve("someday", TODAY)
