from datetime import date, timedelta

import pytest

from timespan.relative import WEEKDAYS, resolve


@pytest.mark.parametrize("offset", range(14))
@pytest.mark.parametrize("name", WEEKDAYS)
def test_last_weekday_is_one_to_seven_days_back(offset, name):
    today = date(2023, 12, 26) + timedelta(days=offset)
    found = resolve(f"last {name}", today)
    assert WEEKDAYS[found.weekday()] == name
    assert 1 <= (today - found).days <= 7


def test_next_weekday_is_untouched():
    assert resolve("next friday", date(2024, 5, 17)) == date(2024, 5, 24)
