import pytest

from timespan.durations import format_clock, format_duration, parse_duration, unit_seconds
from timespan.errors import DurationError


def test_units_may_be_long_or_short():
    assert unit_seconds("h") == unit_seconds("Hours") == 3600


def test_parse_parts():
    assert parse_duration("1h 30m") == 5400
    assert parse_duration("2 days, 4 hours") == 2 * 86400 + 4 * 3600


def test_parse_bare_number_is_seconds():
    assert parse_duration("90") == 90


def test_parse_fraction():
    assert parse_duration("1.5h") == 5400


def test_parse_sign():
    assert parse_duration("-2d") == -172800


def test_parse_clock_form():
    assert parse_duration("1:30") == 5400
    assert parse_duration("1:02:03") == 3723


def test_clock_minutes_stop_at_59():
    with pytest.raises(DurationError):
        parse_duration("1:60")


@pytest.mark.parametrize("text", ["", "abc", "5 parsecs", "1h foo", "1h x 2m"])
def test_malformed_durations(text):
    with pytest.raises(DurationError):
        parse_duration(text)


def test_format_keeps_the_two_largest_units():
    assert format_duration(93784) == "1d 2h"
    assert format_duration(93784, parts=4) == "1d 2h 3m 4s"


def test_format_zero():
    assert format_duration(0) == "0s"


def test_format_clock():
    assert format_clock(3723) == "1:02:03"
    assert format_clock(90000) == "25:00:00"
