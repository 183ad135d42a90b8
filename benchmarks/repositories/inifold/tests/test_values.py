import pytest

from inifold.errors import ConfigError
from inifold.values import (
    format_size,
    guess,
    parse_bool,
    parse_choice,
    parse_int,
    parse_list,
    parse_range,
    parse_size,
)


def test_bool():
    assert parse_bool("yes") is True
    assert parse_bool("off") is False
    with pytest.raises(ConfigError):
        parse_bool("maybe")


def test_int():
    assert parse_int("0x1f") == 31
    assert parse_int("1_000") == 1000
    with pytest.raises(ConfigError):
        parse_int("1.5")


def test_size():
    assert parse_size("512") == 512
    assert parse_size("10k") == 10240
    assert parse_size("1.5 MB") == 1572864


def test_format_size():
    assert format_size(100) == "100 B"
    assert format_size(1536) == "1.5 KB"


def test_list():
    assert parse_list("a, b,c") == ["a", "b", "c"]


def test_choice():
    assert parse_choice("debug", ["DEBUG", "INFO"]) == "DEBUG"
    with pytest.raises(ConfigError):
        parse_choice("loud", ["DEBUG", "INFO"])


def test_range():
    assert parse_range("1-3,7") == [1, 2, 3, 7]
    with pytest.raises(ConfigError):
        parse_range("3-1")


def test_guess():
    assert guess("true") is True
    assert guess("12") == 12
    assert guess("1.5") == 1.5
    assert guess("null") is None
    assert guess("text") == "text"
