import pytest

from inifold.errors import ConfigError, MissingKey
from inifold.interpolate import interpolate, order, references


def test_references():
    assert references("${a.b}/${c}") == ["a.b", "c"]


def test_simple():
    assert interpolate({"root": "/srv", "log": {"dir": "${root}/log"}}) == {"root": "/srv", "log": {"dir": "/srv/log"}}


def test_chain():
    assert interpolate({"a": "${b}", "b": "${c}", "c": "x"})["a"] == "x"


def test_fallback():
    assert interpolate({"a": "${nope:8080}"}) == {"a": "8080"}


def test_dollar():
    assert interpolate({"a": "costs $$5"}) == {"a": "costs $5"}


def test_missing():
    with pytest.raises(MissingKey):
        interpolate({"a": "${nope}"})


def test_circle():
    with pytest.raises(ConfigError, match="circular"):
        interpolate({"a": "${b}", "b": "${a}"})


def test_order():
    assert order({"a": "${b}", "b": "1"}) == ["b", "a"]
