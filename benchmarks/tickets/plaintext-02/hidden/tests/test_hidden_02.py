from plaintext.wrapping import hanging, wrap, wrap_paragraphs


def test_a_line_may_fill_the_width():
    assert wrap("aaaa bbbbb", 10) == ["aaaa bbbbb"]
    assert wrap("aa bb cc dd", 5) == ["aa bb", "cc dd"]


def test_one_more_is_too_long():
    assert wrap("aaaa bbbbbb", 10) == ["aaaa", "bbbbbb"]


def test_callers():
    assert wrap_paragraphs("ab cd\nef", 5) == "ab cd\nef"
    assert hanging("ab cd ef", 7) == "- ab cd\n  ef"
