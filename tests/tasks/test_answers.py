"""Structured answers and code blocks as models really write them."""

from __future__ import annotations

import time
from typing import Literal

import pytest
from pydantic import BaseModel

from infra.errors import InvalidOutput
from tasks.answers import code_blocks, parse, required


class Shape(BaseModel):
    decision: Literal["YES", "NO"] = "NO"
    reasons: list[str] = []


@pytest.mark.parametrize(
    "text",
    [
        '{"decision": "YES"}',
        'Sure!\n```json\n{"decision": "YES", "confidence": 3}\n```\nBye {now}.',
        '{not json} then {"decision": "YES"}',
        '{"thought": "hm"}\n{"decision": "YES"}',
        '{"answer": {"decision": "YES"}}',
        '{"decision": "MAYBE"} {"decision": "YES"}',
        '{"decision": "YES", "reasons": ["a\nb"]}',
    ],
)
def test_the_first_object_that_fits_is_found(text: str) -> None:
    found = parse(text, Shape)
    assert found is not None
    assert found.decision == "YES"


@pytest.mark.parametrize("text", ["", "YES", "{}", '{"decision": "YES"', "[1, 2]", '{"other": 1}', "{" * 100_000])
def test_what_holds_no_answer_is_none(text: str) -> None:
    assert parse(text, Shape) is None


def test_hostile_nesting_neither_crashes_nor_hangs() -> None:
    started = time.monotonic()
    assert parse('{"a":' * 20_000, Shape) is None
    assert time.monotonic() - started < 5


def test_a_role_without_which_the_ticket_cannot_go_on_has_to_answer() -> None:
    assert required(Shape(), "architect") == Shape()
    with pytest.raises(InvalidOutput, match="architect"):
        required(None, "architect")


def test_code_blocks_are_found_in_order_and_an_unclosed_one_counts() -> None:
    assert code_blocks("a\n```python\nx = 1\n```\nb\n```\ny\n```\n```js\nz") == ["x = 1", "y", "z"]
    assert code_blocks("no code, `inline` only") == []
    assert code_blocks("```python\n\n```") == []
    assert code_blocks("  ```py\n  x\n  ```\n") == ["  x"]
