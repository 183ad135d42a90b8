"""The day as text, for the screen beside the door and for the front desk."""

from roombook.clock import format_length, format_span, format_time
from roombook.pricing import format_cents, totals


def room_sign(diary, room, now):
    """Return the line on the screen beside a room's door at minute `now`."""
    for booking in diary.of_room(room):
        if booking.start <= now < booking.end:
            return f"{room}: {booking.person} until {format_time(booking.end)}"
        if booking.start > now:
            return f"{room}: free for {format_length(booking.start - now)}"
    return f"{room}: free"


def day_sheet(diary):
    """Return all bookings of the day, one per line."""
    return "\n".join(str(booking) for booking in diary)


def free_sheet(diary, rooms):
    """Return for each room when it can still be booked."""
    lines = []
    for room in rooms:
        spans = ", ".join(format_span(start, end) for start, end in diary.free_spans(room))
        lines.append(f"{room}: {spans or 'full'}")
    return "\n".join(lines)


def invoice(diary):
    """Return what each person owes, most expensive first."""
    ranked = sorted(totals(diary).items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"{person}: {format_cents(cents)}" for person, cents in ranked)
