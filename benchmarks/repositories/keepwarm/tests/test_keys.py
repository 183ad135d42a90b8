import pytest

from keepwarm.keys import call_key, digest, freeze, namespaced


def test_order_of_keys_does_not_matter():
    assert freeze({"a": 1, "b": [2]}) == freeze({"b": [2], "a": 1})
    assert call_key((), {"a": 1, "b": 2}) == call_key((), {"b": 2, "a": 1})


def test_types_are_told_apart():
    assert freeze([1]) != freeze((1,))
    assert freeze(1) != freeze("1")


def test_digest():
    assert digest("a", 1) == digest("a", 1)
    assert len(digest("a")) == 16


def test_namespaced():
    assert namespaced("users", 42) == "users:42"
    assert namespaced("files", "a:b") == "files:a::b"
    with pytest.raises(ValueError):
        namespaced("a:b", 1)
