from plaintext.tables import (
    alignments,
    column_widths,
    escape_cell,
    markdown_table,
    parse_markdown_row,
    sort_rows,
    text_table,
)

HEADER = ["name", "qty"]
ROWS = [["apple", 3], ["fig", 12]]


def test_widths():
    assert column_widths(HEADER, ROWS) == [5, 3]


def test_alignment_follows_the_values():
    assert alignments(HEADER, ROWS) == ["left", "right"]
    assert alignments(["flag"], [[True]]) == ["left"]


def test_text_table():
    assert text_table(HEADER, ROWS) == "name   qty\n-----  ---\napple    3\nfig     12"


def test_markdown_table():
    assert markdown_table(HEADER, ROWS) == (
        "| name  | qty |\n| ----- | --: |\n| apple |   3 |\n| fig   |  12 |"
    )


def test_escape():
    assert escape_cell("a|b") == "a\\|b"


def test_parse_row():
    assert parse_markdown_row("| a | b\\|c |") == ["a", "b|c"]


def test_sort_rows():
    assert sort_rows([["b", 2], ["a", 1]], 1) == [["a", 1], ["b", 2]]
    assert sort_rows([["b", None], ["a", 1]], 1) == [["a", 1], ["b", None]]
