"""One booking of one room."""

from dataclasses import dataclass

from roombook.clock import CLOSING, OPENING, format_span, parse_time

SHORTEST = 15


@dataclass(frozen=True)
class Booking:
    """A room is used by somebody from start to end, in minutes since midnight."""

    room: str
    start: int
    end: int
    person: str

    def __post_init__(self):
        if not self.room or not self.person:
            raise ValueError("a booking needs a room and a person")
        if self.end - self.start < SHORTEST:
            raise ValueError(f"a booking takes at least {SHORTEST} minutes")
        if self.start < OPENING or self.end > CLOSING:
            raise ValueError("the office is closed at that time")

    @property
    def length(self):
        return self.end - self.start

    def __str__(self):
        return f"{self.room} {format_span(self.start, self.end)} {self.person}"


def make_booking(room, start, end, person):
    """Build a booking from texts as a person types them, e.g. ("Oak", "09:00", "10:00", "Ada")."""
    return Booking(room.strip(), parse_time(start), parse_time(end), person.strip())


def overlaps(first, second):
    """Return True if the two bookings need the same room at the same time."""
    if first.room != second.room:
        return False
    return first.start < second.end and second.start < first.end
