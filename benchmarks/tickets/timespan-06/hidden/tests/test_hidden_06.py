from itertools import permutations

from timespan.intervals import Interval, busiest


def test_touching_intervals_in_any_order():
    spans = [Interval(13, 14), Interval(14, 15), Interval(15, 16)]
    assert {busiest(order) for order in permutations(spans)} == {1}


def test_real_overlaps_still_count():
    spans = [Interval(13, 15), Interval(14, 15), Interval(15, 16), Interval(14, 16)]
    assert {busiest(order) for order in permutations(spans)} == {3}


def test_empty_intervals():
    assert busiest([Interval(3, 3)]) == 0
    assert busiest([]) == 0
