import pytest

from inifold.errors import ConfigError
from inifold.interpolate import interpolate


@pytest.mark.parametrize(
    "config",
    [
        {"a": "${a}"},
        {"a": "${b}", "b": "${a}"},
        {"a": "${b}", "b": "${c}", "c": "${b}"},
        {"x": {"a": "${y.b}"}, "y": {"b": "1${y.c}", "c": "${x.a}"}},
    ],
)
def test_circles_are_named(config):
    with pytest.raises(ConfigError, match="circular reference: .* -> "):
        interpolate(config)


def test_a_value_may_be_used_twice():
    assert interpolate({"a": "${c}${b}${c}", "b": "${c}", "c": "x"})["a"] == "xxx"
