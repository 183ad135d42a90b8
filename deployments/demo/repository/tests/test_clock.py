import pytest

from roombook.clock import format_length, format_span, format_time, parse_time


@pytest.mark.parametrize(("text", "minutes"), [("00:00", 0), ("9:05", 545), (" 13:30 ", 810), ("24:00", 1440)])
def test_parse_time(text, minutes):
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "9", "9:60", "24:01", "nine:00", "-1:00"])
def test_parse_time_refuses_what_is_not_a_time(text):
    with pytest.raises(ValueError):
        parse_time(text)


def test_format_time():
    assert format_time(545) == "09:05"
    assert format_span(540, 615) == "09:00-10:15"


@pytest.mark.parametrize(("minutes", "text"), [(0, "0 min"), (45, "45 min"), (60, "1 h"), (90, "1 h 30 min")])
def test_format_length(minutes, text):
    assert format_length(minutes) == text
