"""All bookings of a day, and what may be added to them."""

from roombook.bookings import SHORTEST, make_booking, overlaps
from roombook.clock import CLOSING, OPENING


class Conflict(Exception):
    """The room is taken at that time."""

    def __init__(self, wanted, taken):
        super().__init__(f"cannot book {wanted}: taken by {taken}")
        self.wanted = wanted
        self.taken = taken


class Diary:
    """The bookings of one day. No two of them overlap."""

    def __init__(self, bookings=()):
        self._bookings = []
        for booking in bookings:
            self.add(booking)

    def __len__(self):
        return len(self._bookings)

    def __iter__(self):
        return iter(sorted(self._bookings, key=lambda b: (b.start, b.room)))

    def add(self, booking):
        """Add a booking, or raise Conflict if the room is taken."""
        for taken in self._bookings:
            if overlaps(booking, taken):
                raise Conflict(booking, taken)
        self._bookings.append(booking)
        return booking

    def book(self, room, start, end, person):
        """Add a booking from texts: diary.book("Oak", "09:00", "10:00", "Ada")."""
        return self.add(make_booking(room, start, end, person))

    def cancel(self, room, start):
        """Remove the booking of the room that starts at this minute; return it, or None if there is none."""
        for booking in self._bookings:
            if booking.room == room and booking.start == start:
                self._bookings.remove(booking)
                return booking
        return None

    def of_room(self, room):
        """Return the bookings of one room, earliest first."""
        return [b for b in self if b.room == room]

    def of_person(self, person):
        """Return the bookings of one person, earliest first."""
        return [b for b in self if b.person.casefold() == person.casefold()]

    def free_spans(self, room):
        """Return the spans (start, end) in which the room can still be booked today."""
        spans = []
        free_from = OPENING
        for booking in self.of_room(room):
            if booking.start - free_from >= SHORTEST:
                spans.append((free_from, booking.start))
            free_from = booking.end
        if CLOSING - free_from >= SHORTEST:
            spans.append((free_from, CLOSING))
        return spans
