import pytest

from inifold.errors import ConfigError
from inifold.table import column, group_by, parse_csv, parse_row, to_csv, to_records


def test_plain_fields_are_stripped():
    assert parse_row("a, b ,c") == ["a", "b", "c"]


def test_quoted_fields():
    assert parse_row('"a, b",c') == ["a, b", "c"]
    assert parse_row('x, " y "') == ["x", " y "]


def test_open_quote():
    with pytest.raises(ConfigError):
        parse_row('"abc')


def test_parse_csv():
    assert parse_csv("# head\nname;qty\n\ntea;3\n", separator=";") == [["name", "qty"], ["tea", "3"]]


def test_records():
    assert to_records([["name", "qty"], ["tea", "3"], ["pen"]]) == [
        {"name": "tea", "qty": "3"},
        {"name": "pen", "qty": None},
    ]


def test_long_row():
    with pytest.raises(ConfigError) as caught:
        to_records([["a"], ["1"], ["2", "3"]])
    assert caught.value.line == 3


def test_no_rows():
    assert to_records([]) == []


def test_round_trip():
    rows = [["a, b", 'say "hi"'], ["", "x"]]
    assert parse_csv(to_csv(rows)) == rows


def test_column_and_groups():
    records = [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}]
    assert column(records, "v") == [1, 2, 3]
    assert list(group_by(records, "k")) == ["x", "y"]
