import pytest

from inifold.errors import ConfigError
from inifold.values import parse_range


def test_both_ends_are_included():
    assert parse_range("2-5") == [2, 3, 4, 5]
    assert parse_range("4-4") == [4]


def test_single_numbers():
    assert parse_range("9, 3 ,3") == [3, 9]
    assert parse_range("0") == [0]


def test_overlapping_ranges():
    assert parse_range("1-3,2-4") == [1, 2, 3, 4]


def test_backwards():
    with pytest.raises(ConfigError):
        parse_range("5-4")
