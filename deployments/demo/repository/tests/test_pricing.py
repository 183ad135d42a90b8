import pytest

from roombook.bookings import make_booking
from roombook.pricing import billable_units, format_cents, price_cents, totals


@pytest.mark.parametrize(("minutes", "units"), [(15, 1), (30, 1), (31, 2), (60, 2), (100, 4)])
def test_every_started_half_hour_is_billed(minutes, units):
    assert billable_units(minutes) == units


def test_price_depends_on_the_room():
    assert price_cents(make_booking("Oak", "09:00", "10:00", "Ada")) == 850
    assert price_cents(make_booking("Hall", "09:00", "10:00", "Ada")) == 3100
    assert price_cents(make_booking("Cellar", "09:00", "10:00", "Ada")) == 630


def test_after_six_hours_the_room_is_free_of_charge():
    assert price_cents(make_booking("Oak", "08:00", "19:00", "Ada")) == 5100


def test_totals():
    day = [make_booking("Oak", "09:00", "10:00", "Ada"), make_booking("Elm", "11:00", "11:30", "Ada")]
    assert totals(day) == {"Ada": 1275}


@pytest.mark.parametrize(("cents", "text"), [(1250, "12.50"), (99, "0.99"), (199, "1.99")])
def test_format_cents(cents, text):
    assert format_cents(cents) == text
