"""Definitions of a source file (functions, methods, classes, types, module-level names), found by tree-sitter queries.

Unlike `infra.syntax`, which splices functions, this only names places, and fast: the search runs inside tree-sitter.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, cast

from tree_sitter import Node, Query, QueryCursor

from infra.syntax import grammar, is_source, syntax_tree

Kind = Literal["function", "method", "class", "type", "constant"]
SIGNATURE_CHARS = 200
_MAX_DEPTH = 50

_PYTHON = """
(function_definition name: (identifier) @name) @function
(class_definition name: (identifier) @name) @class
(module (expression_statement (assignment left: (identifier) @name)) @constant)
"""
_JAVASCRIPT = """
(function_declaration name: (_) @name) @function
(generator_function_declaration name: (_) @name) @function
(class_declaration name: (_) @name) @class
(method_definition name: (_) @name) @method
(variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression)]) @function
(pair key: (_) @name value: [(arrow_function) (function_expression)]) @function
(assignment_expression left: (_) @name right: [(arrow_function) (function_expression)]) @function
(program (lexical_declaration (variable_declarator name: (identifier) @name)) @constant)
(program (export_statement (lexical_declaration (variable_declarator name: (identifier) @name))) @constant)
"""
_TYPESCRIPT = """
(abstract_class_declaration name: (_) @name) @class
(public_field_definition name: (_) @name value: [(arrow_function) (function_expression)]) @method
(interface_declaration name: (_) @name) @type
(type_alias_declaration name: (_) @name) @type
(enum_declaration name: (_) @name) @type
"""
_GO = """
(function_declaration name: (_) @name) @function
(method_declaration receiver: (_) @receiver name: (_) @name) @method
(type_spec name: (_) @name) @type
(source_file (const_declaration (const_spec name: (identifier) @name) @constant))
(source_file (var_declaration (var_spec name: (identifier) @name) @constant))
"""
_FIELD = "(field_definition property: (_) @name value: [(arrow_function) (function_expression)]) @method"


class Symbol(NamedTuple):
    """One definition. Lines are 1-based and inclusive; `signature` is the line it begins on, shortened."""

    name: str
    qualified_name: str
    kind: Kind
    start_line: int
    end_line: int
    signature: str


@cache
def _query(suffix: str) -> Query:
    by_suffix = {".py": _PYTHON, ".go": _GO, ".ts": _JAVASCRIPT + _TYPESCRIPT, ".tsx": _JAVASCRIPT + _TYPESCRIPT}
    return Query(grammar(suffix), by_suffix.get(suffix, _JAVASCRIPT + _FIELD))


class _Definition(NamedTuple):
    kind: Kind
    span: Node
    name: str
    receiver: str


def symbols(path: str, source: bytes) -> list[Symbol]:
    """The definitions of a file in source order; empty for unknown languages."""
    if not is_source(path):
        return []
    named: list[Symbol] = []
    outer: list[tuple[int, str, Kind]] = []
    for kind, span, name, receiver in _definitions(path, source):
        outer = [each for each in outer if each[0] >= span.end_byte][-_MAX_DEPTH:]
        owner = receiver or (outer[-1][1] if outer else "")
        qualified = f"{owner}.{name}" if owner else name
        if kind == "function" and outer and outer[-1][2] == "class":
            kind = "method"
        named.append(Symbol(name, qualified, kind, span.start_point[0] + 1, span.end_point[0] + 1,
                            _first_line(source, span)))  # fmt: skip
        outer.append((span.end_byte, qualified, kind))
    return named


def _definitions(path: str, source: bytes) -> list[_Definition]:
    """Outer ones first; a name that is defined as two kinds at one place is what is no constant."""
    found: dict[int, _Definition] = {}
    for _, captures in QueryCursor(_query(PurePosixPath(path).suffix)).matches(syntax_tree(path, source)):
        (name,), (kind,) = captures["name"], captures.keys() - {"name", "receiver"}
        receiver = _text(captures["receiver"][0]) if "receiver" in captures else ""
        if kind != "constant" or name.start_byte not in found:
            plain = _text(name).rpartition(".")[2].strip("\"'")
            found[name.start_byte] = _Definition(cast(Kind, kind), captures[kind][0], plain, _type_of(receiver))
    return sorted(found.values(), key=lambda d: (d.span.start_byte, -d.span.end_byte))


def _text(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")


def _type_of(receiver: str) -> str:
    """`Circle` of Go's `(c *Circle[T])`."""
    found = re.search(r"(\w+)\s*(\[.*\])?\s*\)$", receiver)
    return found[1] if found else ""


def _first_line(source: bytes, span: Node) -> str:
    start = max(source.rfind(b"\n", 0, span.start_byte) + 1, span.start_byte - SIGNATURE_CHARS)
    line = source[start : span.start_byte + 4 * SIGNATURE_CHARS].split(b"\n", 1)[0]
    return line.decode(errors="replace").strip()[:SIGNATURE_CHARS]
