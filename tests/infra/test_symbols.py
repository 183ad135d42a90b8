"""Definitions of the four languages, with their places."""

from __future__ import annotations

import pytest

from infra.symbols import SIGNATURE_CHARS, symbols

PYTHON = b'''LIMIT = 3


class Cart(Base):
    """A cart."""

    def total(self):
        def inner(): ...

    @property
    async def late(self): ...


def main(): ...
'''
TYPESCRIPT = b"""export const double = (x: number) => x * 2
const LIMIT = 3
export abstract class Cart { total() { return 1 }
  late = () => 2 }
interface Item {}
type Price = number
enum State { Open }
"""
JAVASCRIPT = b"""module.exports.close = function () {}
class Cart { late = () => 1 }
const handlers = { open: () => 1, 'shut': function () {} }
function* walk() {}
"""
GO = b"""package cart

const (
\tLimit = 3
)
var Rate int
type Cart[T any] struct{}
func (c *Cart[T]) Total() int { return 1 }
func Main() {}
"""


def found(path: str, source: bytes) -> list[tuple[str, str, int]]:
    return [(s.kind, s.qualified_name, s.start_line) for s in symbols(path, source)]


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("a.py", PYTHON, [
            ("constant", "LIMIT", 1), ("class", "Cart", 4), ("method", "Cart.total", 7), ("function", "Cart.total.inner", 8),
            ("method", "Cart.late", 11), ("function", "main", 14)]),
        ("a.ts", TYPESCRIPT, [
            ("function", "double", 1), ("constant", "LIMIT", 2), ("class", "Cart", 3), ("method", "Cart.total", 3),
            ("method", "Cart.late", 4), ("type", "Item", 5), ("type", "Price", 6), ("type", "State", 7)]),
        ("a.mjs", JAVASCRIPT, [
            ("function", "close", 1), ("class", "Cart", 2), ("method", "Cart.late", 2), ("constant", "handlers", 3),
            ("function", "handlers.open", 3), ("function", "handlers.shut", 3), ("function", "walk", 4)]),
        ("a.go", GO, [
            ("constant", "Limit", 4), ("constant", "Rate", 6), ("type", "Cart", 7), ("method", "Cart.Total", 8),
            ("function", "Main", 9)]),
        ("a.md", b"def f(): ...", []),
        ("a.py", b"def f():\n    pass\n\n\n\xff def (:\n", [("function", "f", 1)]),
    ],
)  # fmt: skip
def test_definitions_are_named_with_their_owner_and_line(
    path: str, source: bytes, expected: list[tuple[str, str, int]]
) -> None:
    assert found(path, source) == expected


def test_a_signature_is_the_line_a_definition_begins_on_and_short() -> None:
    assert symbols("a.ts", TYPESCRIPT)[0].signature == "export const double = (x: number) => x * 2"
    (one,) = symbols("a.js", b"function f() { return '" + b"x" * 10_000 + b"' }")
    assert len(one.signature) == SIGNATURE_CHARS


def test_deep_nesting_is_no_trouble() -> None:
    source = b"".join(b" " * depth + b"def f():\n" for depth in range(300)) + b" " * 300 + b"pass\n"
    assert len(symbols("a.py", source)) == 300
