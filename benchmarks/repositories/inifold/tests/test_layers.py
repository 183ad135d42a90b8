import pytest

from inifold.errors import ConfigError, MissingKey
from inifold.layers import diff, flatten, fold, from_environment, from_pairs, get, set_path


def test_later_layers_win():
    assert fold([{"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}]) == {"a": {"x": 3, "y": 2}}


def test_none_removes():
    assert fold([{"a": 1, "b": 2}, {"a": None}]) == {"b": 2}


def test_get():
    config = {"server": {"port": "80", "on": "yes"}}
    assert get(config, "server.port") == "80"
    assert get(config, "server.port", int) == 80
    assert get(config, "server.on", bool) is True


def test_get_default():
    assert get({}, "a.b", int, 5) == 5
    with pytest.raises(MissingKey):
        get({}, "a.b")


def test_get_unreadable():
    with pytest.raises(ConfigError):
        get({"a": "x"}, "a", int)


def test_set_path():
    before = {"a": {"x": 1}}
    assert set_path(before, "a.b.c", 2) == {"a": {"x": 1, "b": {"c": 2}}}
    assert before == {"a": {"x": 1}}


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_environment():
    environment = {"APP_SERVER__PORT": "80", "PATH": "/bin", "APP_DEBUG": "1"}
    assert from_environment(environment, "app") == {"server": {"port": "80"}, "debug": "1"}


def test_pairs():
    assert from_pairs(["a.b=1", "c = x=y"]) == {"a": {"b": "1"}, "c": "x=y"}
    with pytest.raises(ConfigError):
        from_pairs(["novalue"])


def test_diff():
    assert diff({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == {
        "added": ["d"],
        "removed": ["a"],
        "changed": ["b.c"],
    }
