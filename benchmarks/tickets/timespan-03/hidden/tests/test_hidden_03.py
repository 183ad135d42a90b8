from datetime import date, timedelta

from timespan.dates import week_start


def test_weeks_from_sunday():
    assert week_start(date(2024, 5, 15), 6) == date(2024, 5, 12)
    assert week_start(date(2024, 5, 12), 6) == date(2024, 5, 12)
    assert week_start(date(2024, 5, 18), 6) == date(2024, 5, 12)


def test_every_first_weekday():
    for first in range(7):
        for offset in range(14):
            day = date(2024, 2, 20) + timedelta(days=offset)
            start = week_start(day, first)
            assert start.weekday() == first
            assert 0 <= (day - start).days <= 6
