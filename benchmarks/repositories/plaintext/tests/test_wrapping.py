import pytest

from plaintext.wrapping import centre, dedent, hanging, indent, truncate, truncate_words, wrap, wrap_paragraphs


def test_wrap():
    assert wrap("the quick brown fox", 10) == ["the quick", "brown fox"]


def test_wrap_nothing():
    assert wrap("   ", 10) == []


def test_wrap_long_word():
    assert wrap("a extraordinarily b", 6) == ["a", "extraordinarily", "b"]


def test_wrap_needs_a_width():
    with pytest.raises(ValueError):
        wrap("a", 0)


def test_paragraphs():
    assert wrap_paragraphs("one\ntwo\n\n\nthree\n", 20) == "one two\n\nthree"


def test_hanging():
    assert hanging("the quick brown fox", 12) == "- the quick\n  brown fox"


def test_indent_and_dedent():
    assert indent("a\n\nb", "> ") == "> a\n\n> b"
    assert dedent("    a\n      b\n    c") == "a\n  b\nc"


def test_truncate():
    assert truncate("short", 10) == "short"
    assert truncate("a long sentence", 10) == "a long..."


def test_truncate_words():
    assert truncate_words("one two three four", 2) == "one two..."


def test_centre():
    assert centre("ab", 6) == "  ab  "
    assert centre("abc", 2) == "abc"
