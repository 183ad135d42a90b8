import pytest

from stockroom.money import (
    format_money,
    net_from_gross,
    parse_money,
    percent_of,
    round_half_up,
    split_by_weights,
    split_evenly,
)


def test_halves_go_away_from_zero():
    assert round_half_up(2.5) == 3
    assert round_half_up(-2.5) == -3


def test_percent_of():
    assert percent_of(1000, 19) == 190
    assert percent_of(150, 7) == 11


def test_net_from_gross():
    assert net_from_gross(1190, 19) == 1000


def test_split_evenly():
    assert split_evenly(100, 3) == [34, 33, 33]
    assert sum(split_evenly(1001, 7)) == 1001


def test_split_needs_parts():
    with pytest.raises(ValueError):
        split_evenly(100, 0)


def test_split_by_weights():
    assert split_by_weights(100, [1, 3]) == [25, 75]


def test_format_money():
    assert format_money(123450) == "€1,234.50"
    assert format_money(5, "USD") == "$0.05"
    assert format_money(100, "CHF") == "CHF 1.00"


def test_parse_money():
    assert parse_money("12.5") == 1250
    assert parse_money("€ 1,234.50") == 123450
    with pytest.raises(ValueError):
        parse_money("twelve")
