"""What a day of bookings costs each team."""

from collections import defaultdict

UNIT_MINUTES = 30
CENTS_PER_UNIT = {"Oak": 425, "Elm": 425, "Hall": 1550}
DEFAULT_CENTS = 315
DAY_LIMIT_UNITS = 12


def billable_units(minutes):
    """Return how many half-hours are billed for a booking; a half-hour that was started counts."""
    return -(-minutes // UNIT_MINUTES)


def price_cents(booking):
    """Return the price of one booking in cents; after six hours the room is free of charge."""
    units = min(billable_units(booking.length), DAY_LIMIT_UNITS)
    return units * CENTS_PER_UNIT.get(booking.room, DEFAULT_CENTS)


def totals(bookings):
    """Return a dict from person to cents over all the bookings."""
    cents = defaultdict(int)
    for booking in bookings:
        cents[booking.person] += price_cents(booking)
    return dict(cents)


def format_cents(cents):
    """Return cents as text with two decimals, e.g. "12.50"."""
    return f"{cents // 100}.{cents % 100}"
