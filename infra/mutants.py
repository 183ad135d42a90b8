"""Small edits of a function that turn typical slips back: operators, constants, names, arguments, calls, guards.

The classic generate-and-validate repair (Weimer et al. 2009; Debroy and Wong 2010): propose every such edit in the
likeliest functions, run the failing tests on each, keep what turns them green. Costs no tokens, and a test run decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

from tree_sitter import Node

from infra.llm import Frozen
from infra.syntax import Function, syntax_tree

_OPERATORS: dict[str, tuple[str, ...]] = {
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=", ">=", "<="),
    "!=": ("==",),
    "===": ("!==",),
    "!==": ("===",),
    "in": ("not in",),
    "not in": ("in",),
    "is": ("is not",),
    "is not": ("is",),
    "and": ("or",),
    "or": ("and",),
    "&&": ("||",),
    "||": ("&&", "??"),
    "+": ("-", "*"),
    "-": ("+",),
    "*": ("/", "+"),
    "/": ("*", "//", "%"),
    "//": ("/", "%"),
    "%": ("//", "/"),
    "+=": ("-=", "=", "*="),
    "-=": ("+=", "="),
    "*=": ("+=",),
    "=": ("+=",),
    "<<": (">>",),
    ">>": ("<<",),
    "&": ("|",),
    "|": ("&", "^"),
    "^": ("&", "|"),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "min": ("max",),
    "max": ("min",),
    "any": ("all",),
    "all": ("any",),
    "floor": ("ceil", "round"),
    "ceil": ("floor", "round"),
    "int": ("round", "float"),
    "round": ("int",),
    "trunc": ("round", "floor"),
    "append": ("extend",),
    "extend": ("append",),
    "push": ("unshift",),
    "shift": ("pop",),
    "lstrip": ("strip", "rstrip"),
    "rstrip": ("strip", "lstrip"),
    "strip": ("lstrip", "rstrip"),
    "trimStart": ("trim",),
    "trimEnd": ("trim",),
    "startswith": ("endswith",),
    "endswith": ("startswith",),
    "startsWith": ("endsWith",),
    "endsWith": ("startsWith",),
    "find": ("rfind",),
    "rfind": ("find",),
    "indexOf": ("lastIndexOf",),
    "lastIndexOf": ("indexOf",),
    "split": ("rsplit",),
    "rsplit": ("split",),
    "partition": ("rpartition",),
    "rpartition": ("partition",),
    "upper": ("lower",),
    "lower": ("upper",),
    "match": ("fullmatch", "search"),
    "search": ("fullmatch", "match"),
    "fullmatch": ("match", "search"),
    "issubset": ("issuperset",),
    "union": ("intersection",),
    "intersection": ("union",),
    "difference": ("symmetric_difference",),
    "keys": ("values",),
    "values": ("keys",),
    "setdefault": ("get",),
    "some": ("every",),
    "every": ("some",),
    "slice": ("substring",),
    "True": ("False",),
    "False": ("True",),
    "true": ("false",),
    "false": ("true",),
    "break": ("continue",),
    "continue": ("break",),
    "replace": ("replaceAll",),
}
_OTHER_NAMES = 7
_EDITS_OF_ONE_FUNCTION = 10_000


class Edit(Frozen):
    """Replace bytes [start, end) of the file's UTF-8 text. `cost` orders edits: likelier slips are cheaper."""

    start: int
    end: int
    text: str
    what: str
    cost: int


class Mutant(Frozen):
    """One edited file."""

    path: str
    text: str
    function: str
    what: str
    """The edit in words, for people."""
    cost: int
    """Lower is likelier; comparable between the mutants of one search."""


def mutants(
    path: str, source: str, targets: Iterable[Function], limit: int, lines: frozenset[int] | None = None
) -> list[Mutant]:
    """At most `limit` edits of the functions, likeliest first: by cost, then by the order of `targets`.

    With `lines` (1-based) only what starts on one of them is edited: pass the lines that the failing tests execute.
    """
    raw = source.encode()
    ranked: list[tuple[int, int, Edit, str]] = []
    run = [f for f in targets if lines is None or _runs(f, lines)]
    for rank, function in enumerate(run):
        wanted = (e for e in _edits(path, raw, function) if lines is None or raw.count(b"\n", 0, e.start) + 1 in lines)
        for edit in islice(wanted, _EDITS_OF_ONE_FUNCTION):
            ranked.append((edit.cost + rank, rank, edit, function.qualified_name))
    ranked.sort(key=lambda item: (item[0], item[1], item[2].start, item[2].text))
    made: dict[str, Mutant] = {}
    for cost, _, edit, name in ranked:
        text = (raw[: edit.start] + edit.text.encode() + raw[edit.end :]).decode(errors="replace")
        if text != source and text not in made and not syntax_tree(path, text.encode()).has_error:
            made[text] = Mutant(path=path, text=text, function=name, what=edit.what, cost=cost)
        if len(made) >= limit:
            break
    return list(made.values())


def _runs(function: Function, lines: frozenset[int]) -> bool:
    """Whether a line of the body is among `lines`; the first line runs on import, unless it is all there is."""
    body = range(min(function.start_line + 1, function.end_line), function.end_line + 1)
    return any(line in body for line in lines)


def _edits(path: str, raw: bytes, function: Function) -> Iterator[Edit]:
    root = syntax_tree(path, raw)
    node = root.descendant_for_byte_range(function.start_byte, max(function.start_byte, function.end_byte - 1))
    if node is None:
        return
    names = _Names(node, raw)
    for inner in _descendants(node):
        yield from _token_edits(inner)
        yield from _number_edits(inner)
        yield from _name_edits(inner, names)
        yield from _expression_edits(inner, path)
        yield from _assignment_edits(inner)
        yield from _call_edits(inner, names)
        yield from _statement_edits(inner, raw)
        yield from _missing_value_edits(inner, path)
        yield from _format_edits(inner)
        yield from _receiver_edits(inner, path)
    yield from _guard_edits(node, path, raw, names)
    yield from _donor_edits(node, root, path, raw)


def _descendants(node: Node) -> Iterator[Node]:
    waiting = node.children[::-1]
    while waiting:
        child = waiting.pop()
        yield child
        if child.type == "string":  # only what is computed in an f-string is code
            waiting += [part for part in child.children[::-1] if part.type == "interpolation"]
        elif child.type != "comment":
            waiting += child.children[::-1]


def _text(node: Node) -> str:
    return node.text.decode(errors="replace") if node.text else ""


def _replace(node: Node, text: str, cost: int) -> Edit:
    what = f"`{_short(_text(node))}` -> `{_short(text)}` in line {node.start_point[0] + 1}"
    return Edit(start=node.start_byte, end=node.end_byte, text=text, what=what, cost=cost)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


class _Names:
    """The names a function uses: variables and parameters, and attribute names."""

    def __init__(self, node: Node, raw: bytes) -> None:
        self.variables: list[str] = []
        self.attributes: list[str] = []
        self.parameters: list[str] = []
        for inner in _descendants(node):
            if inner.type in ("property_identifier",) or _is_attribute(inner):
                self._add(self.attributes, _text(inner))
            elif inner.type == "identifier" and not _is_called(inner) and not _is_keyword(inner):
                self._add(self.variables, _text(inner))
        parameters = node.child_by_field_name("parameters")
        for inner in _descendants(parameters) if parameters else ():
            if inner.type == "identifier" and (inner.parent is None or inner.parent.type != "type"):
                self._add(self.parameters, _text(inner))
        own = node.child_by_field_name("name")
        if own is not None and _text(own) in self.variables:
            self.variables.remove(_text(own))

    @staticmethod
    def _add(names: list[str], name: str) -> None:
        if name not in names:
            names.append(name)


def _is_attribute(node: Node) -> bool:
    parent = node.parent
    return parent is not None and parent.type == "attribute" and parent.child_by_field_name("attribute") == node


def _is_called(node: Node) -> bool:
    parent = node.parent
    return parent is not None and parent.child_by_field_name("function") == node


def _is_keyword(node: Node) -> bool:
    parent = node.parent
    named = parent is not None and parent.child_by_field_name("name") == node
    return (
        named and parent is not None and parent.type in ("keyword_argument", "default_parameter", "function_definition")
    )


def _is_parameter(node: Node) -> bool:
    """True where a parameter is declared: a second one of the same name is an error."""
    return node.parent is not None and node.parent.type in (
        "parameters", "lambda_parameters", "typed_parameter", "list_splat_pattern", "dictionary_splat_pattern",
        "formal_parameters", "required_parameter", "optional_parameter", "parameter_declaration",
    )  # fmt: skip


def _token_edits(node: Node) -> Iterator[Edit]:
    text = _text(node)
    parent = node.parent.type if node.parent else ""
    if not node.is_named or node.type in ("not in", "is not"):
        if parent in ("keyword_argument", "default_parameter", "list_splat", "dictionary_splat", "variable_declarator"):
            return
        for other in () if _unpacks(node) else _OPERATORS.get(text, ()):
            yield _replace(node, other, 1 if text not in ("=", "==") or other == "!=" else 4)
        if text == "not" and node.parent is not None and node.parent.type == "not_operator":
            yield _replace(node.parent, _text(node.parent)[3:].lstrip(), 2)
        if text == "!" and node.parent is not None:
            yield _replace(node.parent, _text(node.parent)[1:].lstrip(), 2)
    for other in _NAMES.get(text, ()) if node.child_count == 0 else ():
        yield _replace(node, other, 2)


def _unpacks(node: Node) -> bool:
    """True for the `=` of `a, b = …` and of `a = b = …`, which takes no other operator."""
    parent = node.parent
    if parent is None or parent.type != "assignment":
        return False
    nested = any(
        part is not None and part.type == "assignment" for part in (parent.parent, parent.child_by_field_name("right"))
    )
    left = parent.child_by_field_name("left")
    return nested or (left is not None and left.type in ("pattern_list", "tuple_pattern", "list_pattern"))


def _number_edits(node: Node) -> Iterator[Edit]:
    if node.type not in ("integer", "number", "float", "int_literal"):
        return
    text = _text(node)
    if re.fullmatch(r"\d+", text):
        value = int(text)
        others = (
            [value + 1, value - 1] + ([0, 1] if value > 2 else []) + ([value * 10, value // 10] if value >= 10 else [])
        )
        for other in dict.fromkeys(others):
            yield _replace(node, f"{other}", 2)


def _name_edits(node: Node, names: _Names) -> Iterator[Edit]:
    plain = node.type == "identifier" and not (_is_attribute(node) or _is_keyword(node) or _is_called(node))
    if plain and not _is_parameter(node):
        others = [name for name in names.variables if name != _text(node)]
        for other in islice(others, _OTHER_NAMES):
            yield _replace(node, other, 3)
    if node.type == "property_identifier" or _is_attribute(node):
        others = [name for name in names.attributes if name != _text(node)]
        for other in islice(others, _OTHER_NAMES):
            yield _replace(node, other, 4)


_EXPRESSIONS = {
    "identifier", "call", "call_expression", "subscript", "subscript_expression", "attribute", "member_expression",
    "binary_operator", "binary_expression", "parenthesized_expression", "unary_operator",
}  # fmt: skip


def _expression_edits(node: Node, path: str) -> Iterator[Edit]:
    parent = node.parent
    if parent is None or node.type not in _EXPRESSIONS or _is_called(node) or _is_attribute(node) or _is_keyword(node):
        return
    if parent.type in ("attribute", "member_expression", "call", "for_in_clause", "as_pattern_target") or _is_parameter(
        node
    ):
        return
    if any(parent.child_by_field_name(whole) == node for whole in ("value", "object")) and parent.type.startswith(
        "subscript"
    ):
        return
    if any(parent.child_by_field_name(side) == node for side in ("left", "name")) and parent.type not in (
        "binary_operator", "binary_expression", "comparison_operator",
    ):  # fmt: skip
        return
    text = _text(node)
    for suffix in (" + 1", " - 1"):
        yield _replace(node, text + suffix, 3)
    python = path.endswith(".py")
    for suffix in (".strip()", ".lower()") if python else (".trim()", ".toLowerCase()"):
        yield _replace(node, f"({text}){suffix}" if " " in text else text + suffix, 5)
    for call in ("list", "abs", "dict", "str", "int", "sorted") if python else ("Math.abs", "Number", "String"):
        yield _replace(node, f"{call}({text})", 6)
    if not python:
        yield _replace(node, f"[...{text}]", 6)
        yield _replace(node, f"{{ ...{text} }}", 7)
    if node.type in ("binary_operator", "binary_expression"):
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        if left is not None and right is not None:
            yield _replace(node, _text(left), 4)
            yield _replace(node, _text(right), 4)
    if parent.type in (
        "if_statement",
        "while_statement",
        "elif_clause",
        "conditional_expression",
        "ternary_expression",
    ):
        bracketed = node.type == "parenthesized_expression"
        yield _replace(node, f"not {text}" if python else f"(!{text})" if bracketed else f"!({text})", 3)


_FORMATS = (":02d", ":.2f", ":,", "!r", ":03d", ":.1f", ":.0f")


def _format_edits(node: Node) -> Iterator[Edit]:
    """A value of an f-string written in another common form: `{minutes}` -> `{minutes:02d}`."""
    if node.type != "interpolation":
        return
    written = next((part for part in node.children if part.type == "format_specifier"), None)
    for form in _FORMATS:
        if written is None:
            yield _replace(node, f"{_text(node)[:-1]}{form}}}", 4)
        elif form.startswith(":"):
            yield _replace(written, form, 4)
    if written is not None:
        yield _replace(written, "", 4)


def _missing_value_edits(node: Node, path: str) -> Iterator[Edit]:
    """A truth test that takes 0 or an empty text for "missing": `x` -> `x is not None`, `not x` -> `x is None`."""
    parent = node.parent
    if parent is None or node.type not in ("identifier", "attribute", "member_expression", "call", "call_expression"):
        return
    missing, present = ("is None", "is not None") if path.endswith(".py") else ("== null", "!= null")
    text = _text(node)
    if parent.type == "not_operator" or (parent.type == "unary_expression" and _text(parent).startswith("!")):
        yield _replace(parent, f"{text} {missing}", 3)
    tested = parent.child_by_field_name("condition") == node
    if tested or parent.type in ("boolean_operator", "parenthesized_expression", "ternary_expression"):
        yield _replace(node, f"{text} {present}", 4)
    if parent.type == "boolean_operator" or (parent.type == "binary_expression" and _operator(parent) in ("&&", "||")):
        yield _replace(parent, text, 4)


def _operator(node: Node) -> str:
    operator = node.child_by_field_name("operator")
    return _text(operator) if operator is not None else ""


def _receiver_edits(node: Node, path: str) -> Iterator[Edit]:
    """The object of a method call cleaned or copied first: `text.lower()` -> `text.strip().lower()`."""
    parent = node.parent
    if parent is None or parent.type not in ("attribute", "member_expression"):
        return
    called = parent.parent is not None and parent.parent.child_by_field_name("function") == parent
    if not called or parent.child_by_field_name("object") != node or _text(node) in ("self", "this", "super()"):
        return
    text = _text(node)
    if path.endswith(".py"):
        others = (f"{text}.strip()", f"{text}.lower()", f"list({text})", f"dict({text})", f"str({text})")
    else:
        others = (f"[...{text}]", f"{text}.trim()", f"{text}.toLowerCase()", f"new Date({text})", f"String({text})")
    for other in others:
        yield _replace(node, other, 5)


_DONOR_CHARS = 80
_DONORS = 40
_DONOR_STATEMENTS = {"expression_statement", "return_statement", "continue_statement", "break_statement"}


def _donor_edits(node: Node, root: Node, path: str, raw: bytes) -> Iterator[Edit]:
    """A short statement of the same file put in before a statement of the function: what is missing in one place is
    often written in another (Barr et al. 2014, "the plastic surgery hypothesis"). Only names the function knows.
    """
    body = node.child_by_field_name("body")
    if body is None:
        return
    known = set(re.findall(r"\w+", _text(node)))
    donors = dict.fromkeys(
        _text(d)
        for d in _descendants(root)
        if d.type in _DONOR_STATEMENTS
        and "\n" not in _text(d)
        and len(_text(d)) <= _DONOR_CHARS
        and _text(d)[:1] not in "\"'"
    )
    fitting = [d for d in donors if _free_names(d) <= known and d not in _text(node)]
    for block in [body, *(b for b in _descendants(body) if b.type in ("block", "statement_block"))]:
        for statement in [c for c in block.named_children if c.type != "comment"]:
            indent = raw[raw.rfind(b"\n", 0, statement.start_byte) + 1 : statement.start_byte].decode(errors="replace")
            if indent.strip():
                continue
            for donor in fitting[:_DONORS]:
                what = f"put `{_short(donor)}` before line {statement.start_point[0] + 1}"
                yield Edit(
                    start=statement.start_byte, end=statement.start_byte, text=f"{donor}\n{indent}", what=what, cost=7
                )


def _free_names(statement: str) -> set[str]:
    """Names of a statement that have to be known where it is put: all but attributes and what follows a dot."""
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", re.sub(r"([\"'`]).*?\1", "", statement))) - _KEYWORDS


_KEYWORDS = frozenset(
    "return continue break self this not and or is in None True False null true false new await".split()
)


def _assignment_edits(node: Node) -> Iterator[Edit]:
    """`best = x` -> `best = max(best, x)`: an accumulator that forgot what it had."""
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    if node.type not in ("assignment", "assignment_expression") or left is None or right is None:
        return
    if left.type != "identifier" or right.type in ("list", "dictionary", "string", "array"):
        return
    prefix = "Math." if node.type == "assignment_expression" else ""
    for call in ("max", "min"):
        yield _replace(right, f"{prefix}{call}({_text(left)}, {_text(right)})", 4)
    yield _replace(right, f"{_text(left)} + {_text(right)}", 5)


def _call_edits(node: Node, names: _Names) -> Iterator[Edit]:
    if node.type not in ("argument_list", "arguments", "comparison_operator", "list", "tuple", "pair", "array"):
        return
    items = list(node.named_children)
    for left, right in pairwise(items):
        between = (
            node.text[left.end_byte - node.start_byte : right.start_byte - node.start_byte].decode()
            if node.text
            else ""
        )
        what = f"swap `{_short(_text(left))}` and `{_short(_text(right))}` in line {left.start_point[0] + 1}"
        yield Edit(
            start=left.start_byte, end=right.end_byte, text=_text(right) + between + _text(left), what=what, cost=3
        )
    if node.type in ("argument_list", "arguments"):
        inner = _text(node)[1:-1].rstrip().rstrip(",")
        extras = [p for p in names.parameters if p not in ("self", "cls", "this")][:4]
        by_name = any(item.type in ("keyword_argument", "dictionary_splat") for item in items)
        for name in () if by_name else extras:
            yield _replace(node, f"({inner}, {name})" if inner else f"({name})", 6)
        for extra in ("reverse=True",) if by_name else ("reverse=True", "1"):
            yield _replace(node, f"({inner}, {extra})" if inner else f"({extra})", 7)
        if len(items) > 1:
            yield Edit(
                start=items[-2].end_byte,
                end=items[-1].end_byte,
                text="",
                what=f"drop `{_short(_text(items[-1]))}`",
                cost=5,
            )


_SIMPLE = {
    "expression_statement",
    "assignment",
    "augmented_assignment",
    "if_statement",
    "continue_statement",
    "break_statement",
}


def _statement_edits(node: Node, raw: bytes) -> Iterator[Edit]:
    if node.type not in ("block", "statement_block"):
        return
    statements = [child for child in node.named_children if child.type != "comment"]
    for statement in statements:
        if statement.type in _SIMPLE and len(_text(statement)) < 200:
            empty = "pass" if len(statements) == 1 and node.type == "block" else ""
            what = f"drop `{_short(_text(statement))}` in line {statement.start_point[0] + 1}"
            yield Edit(start=statement.start_byte, end=statement.end_byte, text=empty, what=what, cost=5)
    for first, second in pairwise(statements):
        between = raw[first.end_byte : second.start_byte].decode(errors="replace")
        what = f"swap lines {first.start_point[0] + 1} and {second.start_point[0] + 1}"
        yield Edit(
            start=first.start_byte, end=second.end_byte, text=_text(second) + between + _text(first), what=what, cost=6
        )
    yield from _moves(node, statements, raw)


def _indent(node: Node, raw: bytes) -> str:
    """The white space at the beginning of the node's line."""
    line = raw[: node.start_byte].rpartition(b"\n")[2].decode(errors="replace")
    return line[: len(line) - len(line.lstrip())]


def _moves(block: Node, statements: list[Node], raw: bytes) -> Iterator[Edit]:
    """A loop's neighbour moved into it and a loop's last statement moved out (a `return` one level too deep)."""
    for loop in statements:
        body = loop.child_by_field_name("body")
        if loop.type not in ("for_statement", "while_statement", "for_in_statement", "if_statement") or body is None:
            continue
        inner = body.named_children
        if inner and len(inner) > 1 and block.type == "block":
            last, indent = inner[-1], _indent(loop, raw)
            text = raw[loop.start_byte : inner[-2].end_byte].decode(errors="replace")
            what = f"move `{_short(_text(last))}` out of the block at line {loop.start_point[0] + 1}"
            yield Edit(
                start=loop.start_byte, end=last.end_byte, text=f"{text}\n{indent}{_text(last)}", what=what, cost=5
            )


def _guard_edits(node: Node, path: str, raw: bytes, names: _Names) -> Iterator[Edit]:
    """An early return for empty or missing input, the slip behind most crashes on edge cases."""
    body = node.child_by_field_name("body")
    if body is None or not path.endswith(".py"):
        return
    first = next(
        (c for c in body.named_children if not (c.type == "expression_statement" and _text(c)[:1] in "\"'")), None
    )
    if first is None:
        return
    indent = _indent(first, raw)
    for name in islice((p for p in names.parameters if p not in ("self", "cls")), 2):
        for test in (f"not {name}", f"{name} is None"):
            for value in ("None", name, "0", "[]", '""', "False", "True", "{}"):
                guard = f"if {test}:\n{indent}    return {value}\n{indent}"
                what = f"return {value} early when `{test}`"
                yield Edit(start=first.start_byte, end=first.start_byte, text=guard, what=what, cost=7)
