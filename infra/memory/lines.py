"""How points are shown to a model or an agent: one bounded line each, whose text is quoted, whoever wrote it."""

from __future__ import annotations

import json

from infra.memory import Answer, Point

RECALLED_POINTS = 8
RECALLED_TOKENS = 1_500
CHARS_PER_TOKEN = 3
"""Few, so that the bound holds for code and for languages other than English, too."""


def shown_lines(answer: Answer, tokens: int = RECALLED_TOKENS) -> dict[str, str]:
    """One line per point by its id, best first, until the tokens are used up: id, day, kind and source as plain words, the
    text in quotes."""
    lines: dict[str, str] = {}
    left = tokens * CHARS_PER_TOKEN
    for found in answer.found[:RECALLED_POINTS]:
        line = _line(found.point)
        if len(line) + 1 > left:
            continue
        lines[found.point.id] = line
        left -= len(line) + 1
    return lines


def _line(point: Point) -> str:
    record = point.record
    seen = f", seen {point.seen} times" if point.seen > 1 else ""
    source = one_line(point.sources[0] if point.sources else record.ticket, 80) or "unknown"
    head = (
        f"{point.id[:8]} {point.updated_at:%Y-%m-%d} {record.kind} of {one_line(record.scope, 80)} from {source}{seen}"
    )
    return f"[{head}] {json.dumps(one_line(record.text, 800), ensure_ascii=False)}"


def one_line(text: str, chars: int) -> str:
    """Without line breaks and control characters; brackets would end the line's head."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.replace("[", "(").replace("]", ")").split())[:chars]
