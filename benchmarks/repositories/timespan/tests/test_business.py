from datetime import date

import pytest

from timespan.business import Calendar

WEDNESDAY = date(2024, 5, 15)


def test_weekend_and_holidays():
    calendar = Calendar(holidays=[date(2024, 5, 20)], yearly=[(12, 25)])
    assert not calendar.is_workday(date(2024, 5, 18))
    assert not calendar.is_workday(date(2024, 5, 20))
    assert not calendar.is_workday(date(2031, 12, 25))
    assert calendar.is_workday(WEDNESDAY)


def test_a_week_without_work_is_refused():
    with pytest.raises(ValueError):
        Calendar(weekend=range(7))


def test_next_and_previous():
    calendar = Calendar()
    assert calendar.next_workday(date(2024, 5, 17)) == date(2024, 5, 20)
    assert calendar.previous_workday(date(2024, 5, 20)) == date(2024, 5, 17)


def test_add_workdays():
    calendar = Calendar()
    assert calendar.add_workdays(WEDNESDAY, 3) == date(2024, 5, 20)
    assert calendar.add_workdays(WEDNESDAY, -3) == date(2024, 5, 10)


def test_count_workdays_includes_both_ends():
    assert Calendar().count_workdays(date(2024, 5, 13), date(2024, 5, 17)) == 5


def test_last_workday_of_month():
    assert Calendar().last_workday_of_month(2024, 6) == date(2024, 6, 28)
    assert Calendar().last_workday_of_month(2024, 12) == date(2024, 12, 31)


def test_with_holidays_leaves_the_original_alone():
    calendar = Calendar()
    extended = calendar.with_holidays([WEDNESDAY])
    assert not extended.is_workday(WEDNESDAY)
    assert calendar.is_workday(WEDNESDAY)
