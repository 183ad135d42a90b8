import pytest

from inifold.errors import ConfigError
from inifold.table import parse_csv, parse_row, to_csv


def test_doubled_quotes():
    assert parse_row('"say ""hi"" to all",x') == ['say "hi" to all', "x"]
    assert parse_row('"""",b') == ['"', "b"]
    assert parse_row('"",b') == ["", "b"]
    assert parse_row('"a"",""b"') == ['a","b']


def test_round_trip():
    rows = [['"', 'a"b', '""', "plain"], ['x, "y"', ""]]
    assert parse_csv(to_csv(rows)) == rows


def test_open_quotes():
    with pytest.raises(ConfigError):
        parse_row('"a""')
