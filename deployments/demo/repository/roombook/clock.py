"""Times of day as minutes since midnight."""

MINUTES_PER_DAY = 24 * 60
OPENING = 8 * 60
CLOSING = 20 * 60


def parse_time(text):
    """Read a time like "09:30" and return minutes since midnight.

    Raises ValueError if the text is not a time of day.
    """
    hours, separator, minutes = text.strip().partition(":")
    if not separator or not hours.isdigit() or not minutes.isdigit():
        raise ValueError(f"not a time: {text!r}")
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > MINUTES_PER_DAY:
        raise ValueError(f"not a time of day: {text!r}")
    return total


def format_time(minutes):
    """Return minutes since midnight as text like "09:30"."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def format_span(start, end):
    """Return a time span as text like "09:30-10:15"."""
    return f"{format_time(start)}-{format_time(end)}"


def format_length(minutes):
    """Return a length as people say it: "45 min", "1 h", "1 h 30 min"."""
    hours, rest = divmod(minutes, 60)
    parts = []
    if hours:
        parts.append(f"{hours} h")
    if rest or not hours:
        parts.append(f"{rest} min")
    return " ".join(parts)
