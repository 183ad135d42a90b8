import pytest

from timespan.intervals import Interval, busiest, gaps, merge, total_length


def test_end_before_start_is_refused():
    with pytest.raises(ValueError):
        Interval(5, 2)


def test_membership_is_half_open():
    span = Interval(1, 4)
    assert 1 in span
    assert 4 not in span


def test_intersection():
    assert Interval(1, 5).intersection(Interval(3, 9)) == Interval(3, 5)
    assert Interval(1, 3).intersection(Interval(5, 9)) is None


def test_touching_intervals_do_not_overlap():
    assert not Interval(1, 3).overlaps(Interval(3, 5))


def test_subtract_from_the_middle():
    assert Interval(0, 10).subtract(Interval(3, 5)) == [Interval(0, 3), Interval(5, 10)]


def test_merge_sorts_and_joins():
    assert merge([Interval(5, 8), Interval(1, 3), Interval(2, 6)]) == [Interval(1, 8)]


def test_merge_keeps_separate_ones():
    assert merge([Interval(5, 8), Interval(1, 3)]) == [Interval(1, 3), Interval(5, 8)]


def test_gaps():
    assert gaps([Interval(2, 4), Interval(6, 7)], Interval(0, 10)) == [
        Interval(0, 2),
        Interval(4, 6),
        Interval(7, 10),
    ]


def test_gaps_look_only_inside():
    busy = [Interval(-5, 1), Interval(4, 6), Interval(12, 20)]
    assert gaps(busy, Interval(0, 10)) == [Interval(1, 4), Interval(6, 10)]


def test_total_length_counts_once():
    assert total_length([Interval(0, 4), Interval(2, 6)]) == 6


def test_busiest():
    assert busiest([Interval(0, 4), Interval(2, 6), Interval(3, 5)]) == 3
