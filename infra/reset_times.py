"""Reading the moment at which a used-up limit opens again out of what an agent or a provider said about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

LONGEST_WAIT = timedelta(days=8)
"""The longest window that subscriptions use is a week. Anything later is a misread number or a monthly allowance, and for
both an hourly probe costs less than a provider that stays silenced for weeks: there is no reset."""
JUST_NOW = timedelta(minutes=1)
"""Messages name whole minutes, so a time that passed within the last one means now, not tomorrow."""
LONGEST_TEXT = 20_000
LONGEST_FORM = 80

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

ANCHOR = re.compile(
    r"(?:(?P<key>retry[-_ ]?after(?P<milli>[-_ ]?ms)?|retry_?delay|resets?_in_seconds|resets?_after)"
    r"|resets?[-_]?at|resets?|try again|retry|regain access|please wait|limit reached(?=\|))"
    r"(?![a-z])[\"'\s:=|·∙,]{0,6}(?:(?:at|on|in|until|after|for)\s+)?",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(\d{1,13}(?:\.\d{1,9})?)(?![\d:/-]|\.\d)")
ZONE = r"(?:\s*\((?P<zone>[\w+/-]{1,40})\)|\s*(?P<bare>UTC|GMT|Z)\b)?"
ISO = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)(?:(?:T|\s+at\s+|\s+)(?P<clock>\d\d:\d\d(?::\d\d)?)(?:[.,]\d{1,9})?"
    rf"\s*(?P<offset>[+-]\d\d:?\d\d)?{ZONE})?",
)
HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
UNIT = r"(?P<unit>ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
PART = re.compile(rf"(?:\s|,|and\b){{0,6}}(?P<number>\d{{1,9}}(?:\.\d{{1,9}})?)\s{{0,3}}{UNIT}", re.IGNORECASE)
CLOCK = r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?(?::\d\d)?\s{0,2}(?P<half>[ap]\.?m\b)?"
DATED = re.compile(
    rf"(?P<month>{'|'.join(MONTHS)})[a-z]{{0,6}}\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?(?![\d:])"
    rf"(?:,?\s+(?:at\s+)?{CLOCK}\.?{ZONE})?",
    re.IGNORECASE,
)
TIMED = re.compile(
    rf"(?:(?P<weekday>{'|'.join(WEEKDAYS)})[a-z]{{0,6}},?\s+(?:at\s+)?)?{CLOCK}\.?{ZONE}",
    re.IGNORECASE,
)


def parse_reset(text: str, now: datetime) -> datetime | None:
    """The moment (aware, UTC, from `now` to `LONGEST_WAIT` after it) that a message names for asking again, or None.

    The last readable one counts: it stands in the message that the run ended with. A time of day is its next occurrence;
    without a zone it is in that of `now` (agents print the clock of their machine), and an unknown zone is read as UTC.
    """
    found = None
    text = text[-LONGEST_TEXT:]
    for anchor in ANCHOR.finditer(text):
        form = text[anchor.end() : anchor.end() + LONGEST_FORM]
        found = _first(_moments(form, anchor, now), now) or found
    return found


def from_epoch(value: object, now: datetime) -> datetime | None:
    """The moment of a Unix time in seconds or milliseconds, under the bounds of `parse_reset`; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e9 <= value < 1e13:
        return None
    return _first(iter([datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)]), now)


def after_seconds(value: object, now: datetime) -> datetime | None:
    """The moment that many seconds after `now`, under the bounds of `parse_reset`; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_WAIT.total_seconds():
        return None
    return now.astimezone(UTC) + timedelta(seconds=value)


def retry_after(text: str | None, now: datetime) -> datetime | None:
    """The moment that a `Retry-After` header names, as seconds or as an HTTP date, under the bounds of `parse_reset`."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return after_seconds(float(text), now)
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return soon(found if found.tzinfo else found.replace(tzinfo=UTC), now)


def soon(moment: datetime, now: datetime) -> datetime | None:
    """An aware moment under the bounds of `parse_reset`; None for one outside of them."""
    found = _first(iter([moment]), now)
    return found.astimezone(UTC) if found else None  # not before: the last day of the calendar is too late for UTC


def _first(moments: Iterator[datetime], now: datetime) -> datetime | None:
    """The earliest that is not past; None when that one is too far away."""
    moment = min((moment for moment in moments if moment >= now - JUST_NOW), default=None)
    return None if moment is None or moment > now + LONGEST_WAIT else max(moment, now.astimezone(UTC))


def _moments(form: str, anchor: re.Match[str], now: datetime) -> Iterator[datetime]:
    """What the words after an anchor may mean; several where a date has no year or a clock has no day."""
    try:
        if match := ISO.match(form):
            yield from _of_iso(match, now)
        elif match := HTTP_DATE.match(form):
            yield parsedate_to_datetime(match[0])
        elif (seconds := _duration(form)) is not None:
            yield now.astimezone(UTC) + timedelta(seconds=seconds)
        elif match := DATED.match(form):
            yield from _of_date(match, now)
        elif (match := TIMED.match(form)) and (match["half"] or match["minute"]):
            yield from _of_clock(match, now)
        elif match := NUMBER.match(form):
            yield from _of_number(float(match[1]), anchor, now)
    except (ValueError, OverflowError):  # the 31st of February, 25 o'clock, a duration beyond all calendars
        return


def _of_number(value: float, anchor: re.Match[str], now: datetime) -> Iterator[datetime]:
    """A Unix time; or seconds, where the anchor is a field that holds them."""
    if value >= 1e9:
        yield datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
    elif anchor["key"]:
        yield now.astimezone(UTC) + timedelta(seconds=value * (0.001 if anchor["milli"] else 1))


def _duration(form: str) -> float | None:
    """Seconds of `3h 2m`, `1m26.4s`, `5 days 3 hours`, `2 hours and 5 minutes`; None for anything else."""
    seconds, end = 0.0, 0
    while match := PART.match(form, end):
        unit = match["unit"].lower()
        seconds += float(match["number"]) * UNITS["ms" if unit.startswith(("ms", "milli")) else unit[0]]
        end = match.end()
    return seconds if end else None


def _of_iso(match: re.Match[str], now: datetime) -> Iterator[datetime]:
    clock = match["clock"] or "00:00"
    if offset := match["offset"]:
        yield datetime.fromisoformat(f"{match['day']}T{clock}{offset}").astimezone(UTC)
    else:
        zone = _zone(match, now) if match["clock"] else UTC
        yield from _utc(date.fromisoformat(match["day"]), time.fromisoformat(clock), zone)


def _of_date(match: re.Match[str], now: datetime) -> Iterator[datetime]:
    zone = _zone(match, now)
    this_year = now.astimezone(zone).year
    month, day = MONTHS.index(match["month"].lower()[:3]) + 1, int(match["day"])
    for year in [int(match["year"])] if match["year"] else range(this_year - 1, this_year + 2):
        if not (month == 2 and day == 29 and year % 4):
            yield from _utc(date(year, month, day), _clock(match) if match["hour"] else time(), zone)


def _of_clock(match: re.Match[str], now: datetime) -> Iterator[datetime]:
    """The time on every day of the next week, or on its one weekday."""
    zone, clock = _zone(match, now), _clock(match)
    today = now.astimezone(zone).date()
    for days in range(-1, 9):
        day = today + timedelta(days=days)
        if not match["weekday"] or WEEKDAYS[day.weekday()] == match["weekday"].lower():
            yield from _utc(day, clock, zone)


def _clock(match: re.Match[str]) -> time:
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), (match["half"] or "").lower()
    if half and not 1 <= hour <= 12:
        raise ValueError(f"there is no {hour} o'clock in half a day")
    return time(hour % 12 + 12 * half.startswith("p") if half else hour, minute)


def _zone(match: re.Match[str], now: datetime) -> tzinfo:
    name = match["zone"] or match["bare"]
    if not name:
        return now.tzinfo or UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, malformed, a folder of zones such as "America"
        return UTC


def _utc(day: date, clock: time, zone: tzinfo) -> Iterator[datetime]:
    """When that clock shows that time: twice when it is set back; a skipped time is read with the offset before the skip."""
    for fold in (0, 1):
        moment = datetime.combine(day, clock, zone).replace(fold=fold).astimezone(UTC)
        if fold == 0 or moment.astimezone(zone).replace(tzinfo=None) == datetime.combine(day, clock):
            yield moment
