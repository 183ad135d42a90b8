from timespan.intervals import Interval, gaps


def test_later_intervals_do_not_matter():
    assert gaps([Interval(12, 13)], Interval(0, 10)) == [Interval(0, 10)]
    assert gaps([Interval(2, 3), Interval(11, 12), Interval(15, 16)], Interval(0, 10)) == [
        Interval(0, 2),
        Interval(3, 10),
    ]


def test_an_interval_that_starts_where_the_window_ends():
    assert gaps([Interval(10, 12)], Interval(0, 10)) == [Interval(0, 10)]


def test_overlapping_the_end():
    assert gaps([Interval(8, 12)], Interval(0, 10)) == [Interval(0, 8)]


def test_full_and_empty():
    assert gaps([Interval(-1, 20)], Interval(0, 10)) == []
    assert gaps([], Interval(0, 10)) == [Interval(0, 10)]
