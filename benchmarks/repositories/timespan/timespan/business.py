"""Working days: weekends, holidays, and counting around them."""

from datetime import date, timedelta


class Calendar:
    """Knows which days are worked.

    `holidays` are dates that fall out once; `yearly` are (month, day) pairs that fall out every
    year; `weekend` holds weekday numbers, Monday is 0.
    """

    def __init__(self, holidays=(), yearly=(), weekend=(5, 6)):
        self.holidays = set(holidays)
        self.yearly = set(yearly)
        self.weekend = frozenset(weekend)
        if len(self.weekend) >= 7:
            raise ValueError("at least one weekday must be worked")

    def is_holiday(self, day):
        return day in self.holidays or (day.month, day.day) in self.yearly

    def is_workday(self, day):
        return day.weekday() not in self.weekend and not self.is_holiday(day)

    def next_workday(self, day):
        """The first working day after `day`."""
        day += timedelta(days=1)
        while not self.is_workday(day):
            day += timedelta(days=1)
        return day

    def previous_workday(self, day):
        """The last working day before `day`."""
        day -= timedelta(days=1)
        while not self.is_workday(day):
            day -= timedelta(days=1)
        return day

    def add_workdays(self, day, count):
        """Move `count` working days forward (or back, when negative); 0 rolls to a working day."""
        if count == 0:
            return day if self.is_workday(day) else self.next_workday(day)
        step = self.next_workday if count > 0 else self.previous_workday
        for _ in range(abs(count)):
            day = step(day)
        return day

    def count_workdays(self, start, end):
        """Working days from `start` to `end`, both included; 0 when `end` is earlier."""
        days = (end - start).days + 1
        return sum(1 for offset in range(days) if self.is_workday(start + timedelta(days=offset)))

    def last_workday_of_month(self, year, month):
        """The last working day of a month: pay day."""
        first_of_next = date(year + month // 12, month % 12 + 1, 1)
        return self.previous_workday(first_of_next)

    def with_holidays(self, extra):
        """A new calendar with more holidays; this one stays as it is."""
        return Calendar(self.holidays | set(extra), self.yearly, self.weekend)
