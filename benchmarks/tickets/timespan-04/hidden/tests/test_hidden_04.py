from datetime import date, timedelta

from timespan.relative import describe_days

TODAY = date(2024, 5, 15)


def test_a_week_ahead_is_a_date():
    assert describe_days(date(2024, 5, 22), TODAY) == "2024-05-22"


def test_six_days_ahead_is_a_name():
    assert describe_days(TODAY + timedelta(days=6), TODAY) == "tuesday"
    assert describe_days(TODAY + timedelta(days=2), TODAY) == "friday"
    assert describe_days(TODAY + timedelta(days=1), TODAY) == "tomorrow"


def test_the_past_is_a_date():
    assert describe_days(TODAY - timedelta(days=2), TODAY) == "2024-05-13"
