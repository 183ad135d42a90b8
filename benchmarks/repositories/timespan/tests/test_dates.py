from datetime import date

import pytest

from timespan.dates import (
    add_months,
    age,
    days_in_month,
    month_number,
    parse_date,
    quarter,
    quarter_bounds,
    week_start,
)
from timespan.errors import DateError


def test_days_in_month():
    assert days_in_month(2023, 2) == 28
    assert days_in_month(2024, 2) == 29
    assert days_in_month(2024, 4) == 30
    assert days_in_month(2024, 12) == 31


def test_century_leap_years():
    assert days_in_month(1900, 2) == 28
    assert days_in_month(2000, 2) == 29


def test_month_names():
    assert month_number("September") == 9
    assert month_number("jan") == 1
    with pytest.raises(DateError):
        month_number("ju")


def test_parse_date_forms():
    assert parse_date("2024-02-29") == date(2024, 2, 29)
    assert parse_date("29 Feb 2024") == date(2024, 2, 29)
    assert parse_date("Feb 29, 2024") == date(2024, 2, 29)


def test_parse_date_that_does_not_exist():
    with pytest.raises(DateError):
        parse_date("2023-02-29")


def test_add_months():
    assert add_months(date(2024, 3, 15), 2) == date(2024, 5, 15)
    assert add_months(date(2024, 1, 31), 1) == date(2024, 2, 29)
    assert add_months(date(2024, 11, 30), 3) == date(2025, 2, 28)


def test_add_months_backwards():
    assert add_months(date(2024, 1, 15), -1) == date(2023, 12, 15)


def test_quarters():
    assert [quarter(date(2024, month, 1)) for month in (1, 3, 4, 12)] == [1, 1, 2, 4]
    assert quarter_bounds(date(2024, 5, 20)) == (date(2024, 4, 1), date(2024, 6, 30))


def test_week_starts_on_monday():
    assert week_start(date(2024, 5, 16)) == date(2024, 5, 13)
    assert week_start(date(2024, 5, 13)) == date(2024, 5, 13)


def test_age():
    assert age(date(1990, 6, 15), date(2024, 6, 14)) == 33
    assert age(date(1990, 6, 15), date(2024, 7, 1)) == 34
