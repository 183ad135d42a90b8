import pytest

from inifold.errors import ConfigError
from inifold.ini import dump_ini, parse_ini, strip_comment, unquote


def test_sections_and_keys():
    text = "debug = yes\n\n[Server]\nHost = localhost\nport=80\n"
    assert parse_ini(text) == {"": {"debug": "yes"}, "server": {"host": "localhost", "port": "80"}}


def test_dotted_sections_nest():
    assert parse_ini("[a.b]\nx = 1\n") == {"a": {"b": {"x": "1"}}}


def test_comments():
    assert parse_ini("# top\n[a] ; section\nx = 1  # one\n") == {"a": {"x": "1"}}
    assert strip_comment("a#b") == "a#b"


def test_quotes():
    assert unquote('"a b"') == "a b"
    assert parse_ini('[a]\nx = " # not a comment "\n') == {"a": {"x": " # not a comment "}}


def test_value_may_hold_an_equals_sign():
    assert parse_ini("[a]\nurl = x?y=1\n") == {"a": {"url": "x?y=1"}}


def test_continued_lines():
    assert parse_ini("[a]\nx = one \\\n    two\n") == {"a": {"x": "one two"}}


def test_duplicate_key():
    with pytest.raises(ConfigError) as caught:
        parse_ini("[a]\nx = 1\nx = 2\n")
    assert caught.value.line == 3


def test_section_may_be_continued():
    assert parse_ini("[a]\nx = 1\n[b]\n[a]\ny = 2\n") == {"a": {"x": "1", "y": "2"}, "b": {}}


def test_malformed_lines():
    with pytest.raises(ConfigError):
        parse_ini("[a\n")
    with pytest.raises(ConfigError):
        parse_ini("just text\n")


def test_dump():
    config = {"a": {"x": "1", "b": {"y": "has # sign"}}}
    assert dump_ini(config) == '[a]\nx = 1\n\n[a.b]\ny = "has # sign"\n'
    assert parse_ini(dump_ini(config)) == config
