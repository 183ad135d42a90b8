"""Books meeting rooms for one office, one day at a time."""

from roombook.bookings import Booking, overlaps
from roombook.clock import format_time, parse_time
from roombook.diary import Conflict, Diary

__all__ = ["Booking", "Conflict", "Diary", "format_time", "overlaps", "parse_time"]
