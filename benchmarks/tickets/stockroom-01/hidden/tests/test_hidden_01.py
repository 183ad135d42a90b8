import pytest

from stockroom.money import split_by_weights


def test_the_rest_goes_to_the_largest_weight():
    assert split_by_weights(100, [1, 4, 1]) == [16, 68, 16]
    assert split_by_weights(101, [5, 5]) == [51, 50]
    assert split_by_weights(10, [3, 1]) == [8, 2]


def test_nothing_is_lost():
    for cents in range(0, 200, 7):
        assert sum(split_by_weights(cents, [2, 3, 5, 7])) == cents


def test_weights_are_needed():
    with pytest.raises(ValueError):
        split_by_weights(100, [0, 0])
