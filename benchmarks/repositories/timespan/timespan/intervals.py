"""Half-open intervals [start, end) over anything that can be ordered and subtracted."""


class Interval:
    """A span from `start` (included) to `end` (excluded)."""

    __slots__ = ("end", "start")

    def __init__(self, start, end):
        if end < start:
            raise ValueError(f"interval ends before it starts: {start!r} .. {end!r}")
        self.start = start
        self.end = end

    def __repr__(self):
        return f"Interval({self.start!r}, {self.end!r})"

    def __eq__(self, other):
        if not isinstance(other, Interval):
            return NotImplemented
        return (self.start, self.end) == (other.start, other.end)

    def __hash__(self):
        return hash((self.start, self.end))

    def __contains__(self, point):
        return self.start <= point < self.end

    @property
    def length(self):
        return self.end - self.start

    @property
    def empty(self):
        return self.start == self.end

    def overlaps(self, other):
        """True when both share at least one point."""
        return max(self.start, other.start) < min(self.end, other.end)

    def intersection(self, other):
        """The shared part, or None."""
        if not self.overlaps(other):
            return None
        return Interval(max(self.start, other.start), min(self.end, other.end))

    def subtract(self, other):
        """What is left of this interval without `other`: a list of 0, 1 or 2 intervals."""
        if not self.overlaps(other):
            return [self]
        left = []
        if self.start < other.start:
            left.append(Interval(self.start, other.start))
        if other.end < self.end:
            left.append(Interval(other.end, self.end))
        return left


def merge(intervals):
    """Sorted, disjoint intervals that cover the same points; neighbours that touch become one."""
    merged = []
    for item in sorted(intervals, key=lambda i: (i.start, i.end)):
        if merged and item.start <= merged[-1].end:
            last = merged.pop()
            merged.append(Interval(last.start, max(last.end, item.end)))
        else:
            merged.append(item)
    return merged


def gaps(intervals, within):
    """The parts of `within` that no interval covers, in order."""
    free = []
    cursor = within.start
    for item in merge(intervals):
        if item.end <= within.start or item.start >= within.end:
            continue
        if item.start > cursor:
            free.append(Interval(cursor, item.start))
        cursor = max(cursor, item.end)
    if cursor < within.end:
        free.append(Interval(cursor, within.end))
    return free


def total_length(intervals, zero=0):
    """Covered length; points covered twice count once."""
    total = zero
    for item in merge(intervals):
        total = total + item.length
    return total


def busiest(intervals):
    """The highest number of intervals that hold at the same point."""
    edges = []
    for item in intervals:
        if not item.empty:
            edges.append((item.start, 1))
            edges.append((item.end, -1))
    best = current = 0
    for _, step in sorted(edges):
        current += step
        best = max(best, current)
    return best
