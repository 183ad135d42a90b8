import pytest

from inifold.errors import ConfigError
from inifold.values import parse_bool


def test_surrounding_space():
    assert parse_bool(" yes") is True
    assert parse_bool("no\n") is False
    assert parse_bool("\tON ") is True
    assert parse_bool("   ") is False


def test_others():
    assert parse_bool("0") is False
    with pytest.raises(ConfigError):
        parse_bool("y e s")
