from datetime import date

from timespan.dates import add_months


def test_from_a_leap_year_into_a_common_one():
    assert add_months(date(2024, 1, 31), 13) == date(2025, 2, 28)
    assert add_months(date(2024, 11, 30), 3) == date(2025, 2, 28)


def test_from_a_common_year_into_a_leap_year():
    assert add_months(date(2023, 12, 31), 2) == date(2024, 2, 29)


def test_backwards():
    assert add_months(date(2024, 3, 31), -1) == date(2024, 2, 29)
    assert add_months(date(2025, 3, 31), -13) == date(2024, 2, 29)
    assert add_months(date(2024, 5, 31), -15) == date(2023, 2, 28)
