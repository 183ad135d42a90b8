"""Atlassian documents to text and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.boards.adf import to_document, to_text
from tests.fakes.jira import adf_mistakes

WEBHOOKS = Path(__file__).parents[4] / "shared" / "contracts" / "jira" / "webhooks"

ROUND_TRIPS = [
    "One line.",
    "Two lines\nof one paragraph.\n\nAnother one.",
    "# Title\n\nText",
    "- one\n- two",
    "- one\n  - inner\n    - innermost\n- two",
    "1. one\n2. two\n   - inner",
    "3. three\n4. four",
    "```python\ndef f():\n    return 1\n\n```",
    "````\n```\nquoted fence\n```\n````",
    "- do this:\n  ```\n  make\n\n  make test\n  ```\n- then that",
    "See `code` and **strong** and [the docs](https://example.org/a?b=c).",
    "a * b ** c ` d [e] (f) #g 1.h -i",
]


@pytest.mark.parametrize("text", ROUND_TRIPS)
def test_what_we_write_is_a_good_document_and_reads_back_as_the_same_text(text: str) -> None:
    document = to_document(text)

    assert list(adf_mistakes(document)) == []
    assert to_text(document) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "- ",
        "```",
        "```\n",
        "```no end",
        "#",
        "# ",
        "- # heading in an item",
        "- ```\n  x",
        "1. a\n- b\n2) c",
        "    - far in\n- out",
        "[x](javascript:alert(1))",
        "[x](https://a.b/(c))",
        "@ada [~accountid:5] <script>",
        "\x00\x1b[31m\ud800 \uffff\r\nx\ry",
        "- " * 500,
        "".join(" " * n + "- x\n" for n in range(200)),
        "`" * 5000,
        "**" * 5000,
        "[" * 5000 + "](http://" * 500,
    ],
)
def test_hostile_text_becomes_a_good_document_without_mentions(text: str) -> None:
    document = to_document(text)

    assert list(adf_mistakes(document)) == []
    json.dumps(document, ensure_ascii=False).encode()
    assert "mention" not in json.dumps(document)


def test_a_list_may_follow_its_introduction_without_a_blank_line() -> None:
    assert to_text(to_document("text\n- one\n- two\n# Title\nend")) == "text\n\n- one\n- two\n\n# Title\n\nend"


def paragraph(*content: Any) -> dict[str, Any]:
    return {"type": "paragraph", "content": list(content)}


def words(text: str, *marks: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": text, "marks": list(marks)}


def test_nodes_that_only_people_write_are_readable() -> None:
    document = {
        "type": "doc",
        "version": 1,
        "content": [
            paragraph(
                {"type": "mention", "attrs": {"id": "5b1", "text": "@Ada"}},
                words(" said "),
                words("yes", {"type": "em"}),
                {"type": "emoji", "attrs": {"shortName": ":tada:"}},
                {"type": "hardBreak"},
                {"type": "inlineCard", "attrs": {"url": "https://example.org"}},
                {"type": "date", "attrs": {"timestamp": "1767225600000"}},
                {"type": "status", "attrs": {"text": "LATE"}},
            ),
            {"type": "panel", "content": [paragraph(words("Careful."))]},
            {"type": "blockquote", "content": [paragraph(words("quoted"))]},
            {"type": "rule"},
            {
                "type": "taskList",
                "content": [
                    {"type": "taskItem", "attrs": {"state": "DONE"}, "content": [words("did")]},
                    {"type": "taskItem", "attrs": {"state": "TODO"}, "content": [words("do")]},
                ],
            },
            {
                "type": "table",
                "content": [
                    {
                        "type": "tableRow",
                        "content": [
                            {"type": "tableHeader", "content": [paragraph(words("a"))]},
                            {"type": "tableCell", "content": [paragraph(words("b"))]},
                        ],
                    }
                ],
            },
            {"type": "expand", "attrs": {"title": "More"}, "content": [paragraph(words("inside"))]},
            {"type": "somethingNew", "content": [{"type": "deeper", "text": "still here"}]},
            {"type": "mediaSingle", "content": [{"type": "media", "attrs": {"alt": "a picture"}}]},
        ],
    }

    text = to_text(document)

    assert text.startswith("@Ada said yes:tada:\nhttps://example.org2026-01-01LATE\n\nCareful.\n\n> quoted\n\n---")
    for part in ("- [x] did\n- [ ] do", "| a | b |", "More\n\ninside", "still here", "a picture"):
        assert part in text


@pytest.mark.parametrize(
    "document",
    [
        None,
        7,
        [],
        {},
        {"type": "doc"},
        {"type": "doc", "content": "x"},
        {
            "type": "doc",
            "content": [None, 7, "x", [], {"type": None}, {"type": []}, {"type": "paragraph", "content": {}}],
        },
        {"type": "doc", "content": [{"type": "heading", "attrs": {"level": "x"}}, {"type": "orderedList", "attrs": 7}]},
        {"type": "doc", "content": [paragraph({"type": "text"}, {"type": "text", "text": 7, "marks": 7})]},
        {"type": "doc", "content": [paragraph({"type": "text", "text": "x", "marks": [7, {"type": "link"}]})]},
        {"type": "doc", "content": [paragraph({"type": "date", "attrs": {"timestamp": "9" * 400}})]},
        {"type": "doc", "content": [{"type": "codeBlock", "attrs": {"language": "a\n```"}, "content": [7]}]},
        {"type": "doc", "content": [{"type": "bulletList", "content": [7, {"type": "listItem"}]}]},
        {"type": "doc", "content": [{"type": "table", "content": [7, {"content": [7]}]}]},
    ],
)
def test_a_malformed_document_is_read_without_an_error(document: object) -> None:
    assert isinstance(to_text(document), str)


@pytest.mark.parametrize("kind", ["bulletList", "blockquote", "panel", "table", "unknown"])
def test_a_document_nested_very_deep_is_cut(kind: str) -> None:
    node: dict[str, Any] = paragraph(words("bottom"))
    for _ in range(300):
        node = {"type": kind, "content": [node]}

    text = to_text({"type": "doc", "content": [node]})

    assert "…" in text
    assert "bottom" not in text


def test_characters_that_a_database_refuses_are_replaced() -> None:
    assert to_text({"type": "doc", "content": [paragraph(words("a\x00b\ud800c"))]}) == "a�b�c"
    assert to_text("wiki\r\ntext\x00") == "wiki\ntext�"


@pytest.mark.skipif(not WEBHOOKS.is_dir(), reason="the recorded deliveries are not beside the checkout")
def test_texts_of_real_deliveries_are_read() -> None:
    texts = []
    for path in sorted(WEBHOOKS.glob("*.json")):
        delivery = json.loads(path.read_text("utf-8"))
        found = [
            delivery.get("issue", {}).get("fields", {}).get("description"),
            delivery.get("comment", {}).get("body"),
        ]
        texts += [to_text(text) for text in found if text]

    assert len(texts) > 10
    assert all(texts)
    assert all(list(adf_mistakes(to_document(text))) == [] for text in texts)
