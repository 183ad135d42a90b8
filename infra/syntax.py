"""Source code as functions: find them, splice corrected ones in, see whether a file parses. Built on tree-sitter.

Knows Python, JavaScript, TypeScript and Go; any other file has no functions and is edited as a whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Literal

import tree_sitter_go
import tree_sitter_javascript
import tree_sitter_python
import tree_sitter_typescript
from tree_sitter import Language, Node, Parser

from infra.llm import Frozen

_GRAMMARS = {
    ".py": tree_sitter_python.language,
    ".js": tree_sitter_javascript.language,
    ".mjs": tree_sitter_javascript.language,
    ".cjs": tree_sitter_javascript.language,
    ".jsx": tree_sitter_javascript.language,
    ".ts": tree_sitter_typescript.language_typescript,
    ".tsx": tree_sitter_typescript.language_tsx,
    ".go": tree_sitter_go.language,
}
_FUNCTIONS = {
    "function_definition",
    "function_declaration",
    "generator_function_declaration",
    "method_definition",
    "method_declaration",
}
_FUNCTION_VALUES = {"arrow_function", "function_expression", "generator_function"}
_HOLDERS = {
    "variable_declarator": ("name", "value"),
    "assignment_expression": ("left", "right"),
    "pair": ("key", "value"),
    "field_definition": ("property", "value"),
    "public_field_definition": ("name", "value"),
}
"""Nodes that give a function value its name: the fields of the name and of the value."""
_CLASSES = {"class_definition", "class_declaration", "abstract_class_declaration"}
_IMPORTS = {"import_statement", "import_from_statement", "import_declaration"}
_OPENINGS = {"comment", "hash_bang_line", "package_clause", "future_import_statement"}
_STRINGS = {"string", "template_string", "raw_string_literal"}


class Function(Frozen):
    """One function or method. Lines are 1-based and inclusive; bytes index the UTF-8 source.

    `text` is without decorators and `export`; of a `value` (`const f = () => 1`) it is the value alone.
    """

    name: str
    owner: str = ""
    """The enclosing class or function (in Go the receiver's type), dotted; empty at module level."""
    form: Literal["declaration", "method", "value"] = "declaration"
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    text: str

    @property
    def qualified_name(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


@cache
def grammar(suffix: str) -> Language:
    """The grammar of a file name's ending, of those that `is_source` knows."""
    return Language(_GRAMMARS[suffix]())


@cache
def _parser(suffix: str) -> Parser:
    return Parser(grammar(suffix))


def is_source(path: str) -> bool:
    """True for files whose functions are known."""
    return PurePosixPath(path).suffix in _GRAMMARS


def syntax_tree(path: str, source: bytes) -> Node:
    """The root node of a source file whose language is known (`is_source`)."""
    return _parser(PurePosixPath(path).suffix).parse(source).root_node


def parses(path: str, source: str) -> bool:
    """True when the file has no syntax error; a file of an unknown language always does."""
    return not is_source(path) or not syntax_tree(path, source.encode()).has_error


def functions(path: str, source: str) -> list[Function]:
    """Every function of a file in source order, nested ones after their parents. Empty for unknown languages."""
    if not is_source(path):
        return []
    raw = source.encode()
    return [_function(node, name, owner, raw) for node, name, owner in _walk(syntax_tree(path, raw), "")]


def _function(node: Node, name: str, owner: str, raw: bytes) -> Function:
    value = _value_of(node)
    span = value or node
    return Function(
        name=name,
        owner=owner,
        form="value" if value else "method" if node.type == "method_definition" else "declaration",
        start_line=span.start_point[0] + 1,
        end_line=span.end_point[0] + 1,
        start_byte=span.start_byte,
        end_byte=span.end_byte,
        text=raw[span.start_byte : span.end_byte].decode(errors="replace"),
    )


def _walk(root: Node, owner: str) -> Iterator[tuple[Node, str, str]]:
    """Every function's node with its name and owner, in source order. No recursion: files may nest without end."""
    waiting = [(child, owner) for child in reversed(root.named_children)]
    while waiting:
        node, owner = waiting.pop()
        name = _name_of(node)
        if name and node.type not in _CLASSES:
            yield node, name, owner or _receiver(node)
        inner = f"{owner}.{name}" if owner and name else name or owner
        waiting += [(child, inner) for child in reversed(node.named_children)]


def _value_of(node: Node) -> Node | None:
    """The function value that `node` gives a name to, as in `const f = () => 1`."""
    value = node.child_by_field_name(_HOLDERS[node.type][1]) if node.type in _HOLDERS else None
    return value if value is not None and value.type in _FUNCTION_VALUES else None


def _name_of(node: Node) -> str:
    """The name a definition gives, or "" for a node that defines no function and no class."""
    value = _value_of(node)
    if value is None and node.type not in _FUNCTIONS | _CLASSES:
        return ""
    name = node.child_by_field_name(_HOLDERS[node.type][0] if value else "name")
    return name.text.decode(errors="replace").rpartition(".")[2] if name is not None and name.text else ""


def _receiver(node: Node) -> str:
    """The type a Go method belongs to: `Circle` of `func (c *Circle[T]) Area()`."""
    receiver = node.child_by_field_name("receiver")
    found = re.search(r"(\w+)\s*(\[.*\])?\s*\)$", receiver.text.decode()) if receiver and receiver.text else None
    return found[1] if found else ""


def splice(path: str, source: str, answer: str) -> str | None:
    """`source` with every function that `answer` defines under a known name replaced by the answer's text.

    Decorators and everything else of the file stay, line ends too. Imports and module-level functions that only the
    answer has are added. None when the answer does not parse, defines no function of the file, or the result does not
    parse.
    """
    if 0 < source.count("\n") == source.count("\r\n"):
        spliced = splice(path, source.replace("\r\n", "\n"), answer)
        return spliced.replace("\n", "\r\n") if spliced is not None else None
    readable = _readable(path, answer.replace("\r\n", "\n"))
    return _spliced(path, source, readable) if readable is not None else None


def _readable(path: str, answer: str) -> str | None:
    """The answer, or the answer as the body of a class when it is a lone method; None when neither parses."""
    wrapped = f"class Answer:\n{answer}" if path.endswith(".py") else f"class Answer {{\n{answer}\n}}"
    return next((text for text in (answer, wrapped) if parses(path, text)), None)


def _spliced(path: str, source: str, answer: str) -> str | None:
    replacements = _matches(functions(path, source), functions(path, answer))
    if not replacements:
        return None
    result = source.encode()
    for old, new in sorted(replacements, key=lambda pair: -pair[0].start_byte):
        text = _in_form(new, old)
        if text is None:
            return None
        placed = _placed(path, text, _column(answer, new), old, source)
        result = result[: old.start_byte] + placed.encode() + result[old.end_byte :]
    additions = _new_functions(path, source, answer)
    if additions:
        at = _outermost_start(path, source, min(old.start_byte for old, _ in replacements))
        result = result[:at] + "".join(f"{text}\n\n\n" for text in additions).encode() + result[at:]
    text = _with_imports(path, result.decode(), answer)
    return text if parses(path, text) else None


def _matches(old: list[Function], new: list[Function]) -> list[tuple[Function, Function]]:
    """Pairs each answered function with the one it replaces; nested ones go with their parents."""
    pairs: dict[int, tuple[Function, Function]] = {}
    for function in new:
        if any(_holds(outer, function) for _, outer in pairs.values()):
            continue
        known = [f for f in old if f.qualified_name == function.qualified_name]
        twins = [f for f in new if f.qualified_name == function.qualified_name]
        known = known or [f for f in old if f.name == function.name]
        if len(known) == len(twins):
            target = known[twins.index(function)]
        elif known:
            target = max(known, key=lambda f: difflib.SequenceMatcher(None, f.text, function.text).ratio())
        else:
            continue
        pairs[target.start_byte] = (target, function)
    targets = [target for target, _ in pairs.values()]
    return [pair for pair in pairs.values() if not any(_holds(outer, pair[0]) for outer in targets)]


def _holds(outer: Function, inner: Function) -> bool:
    return outer != inner and outer.start_byte <= inner.start_byte and inner.end_byte <= outer.end_byte


def _in_form(new: Function, old: Function) -> str | None:
    """The answered function as JavaScript writes it in the old one's place; None when it has no such form."""
    text = new.text
    if new.form == "method" and old.form != "method":
        text = re.sub(r"^(static\s+)?(async\s+)?(\*\s*)?", r"\2function\3 ", text)
    if new.form == "value" and old.form == "declaration":
        text = f"const {old.name} = {text};"
    if old.form == "method":
        if new.form == "value":
            return None
        text = re.sub(r"^(async\s+)?function\s*", r"\1", text)
        kept = "static " if old.text.startswith("static ") and not text.startswith("static ") else ""
        text = kept + text
    return text


def _new_functions(path: str, source: str, answer: str) -> list[str]:
    """Module-level functions that only the answer has and that its other functions name."""
    known = {f.name for f in functions(path, source)}
    given = functions(path, answer)
    fresh = [f for f in given if f.name not in known and (not f.owner or f.text.startswith("func "))]
    fresh = [f for f in fresh if any(f != g and re.search(rf"\b{re.escape(f.name)}\b", g.text) for g in given)]
    return [f"const {f.name} = {f.text};" if f.form == "value" else f.text for f in fresh]


def _outermost_start(path: str, source: str, byte: int) -> int:
    """Start of the module-level statement that holds `byte`, with the comments directly above it."""
    nodes = syntax_tree(path, source.encode()).named_children
    index = next((i for i, n in enumerate(nodes) if n.start_byte <= byte < n.end_byte), None)
    if index is None:
        return 0
    while index and nodes[index - 1].type == "comment" and _adjoins(nodes[index - 1], nodes[index]):
        index -= 1
    return nodes[index].start_byte


def _adjoins(above: Node, below: Node) -> bool:
    return above.start_point[1] == 0 and below.start_point[0] - above.end_point[0] <= 1


def _with_imports(path: str, source: str, answer: str) -> str:
    """`source` with the answer's module-level imports of names that it lacks, after its own imports."""
    raw = source.encode()
    root = syntax_tree(path, raw)
    own = dict(pair for node in _imports(root) for pair in _imported(node))
    known = set().union(*own.values()) | {f.name for f in functions(path, source)}
    given = [pair for node in _imports(syntax_tree(path, answer.encode())) for pair in _imported(node)]
    missing = [text for text, names in given if text not in own and not (names and names <= known)]
    if not missing:
        return source
    at = _imports(root)[-1].end_byte if own else _after_opening(root)
    text = "\n".join(missing).encode()
    return (raw[:at] + (b"\n" + text if at else text + b"\n\n\n") + raw[at:]).decode()


def _imports(root: Node) -> list[Node]:
    return [n for n in root.named_children if n.type in _IMPORTS]


def _imported(node: Node) -> list[tuple[str, set[str]]]:
    """Each import of a statement as text, with the names it binds as far as it tells them."""
    said = (node.text or b"").decode()
    if node.type == "import_declaration":
        specs = re.findall(r'(?:(\w+|\.)[ \t]+)?("[^"]+")', re.sub(r"^import\b", "", said))
        return [
            (f"import {f'{alias} {way}'.strip()}", {alias or way.strip('"').rpartition("/")[2]}) for alias, way in specs
        ]
    source = node.child_by_field_name("module_name")
    return [(said, {name for child in node.named_children if child != source for name in _bound(child)})]


def _bound(node: Node) -> Iterator[str]:
    if node.type in ("aliased_import", "import_specifier"):
        node = node.child_by_field_name("alias") or node.child_by_field_name("name") or node
    if node.type in ("identifier", "dotted_name"):
        yield (node.text or b"").decode().partition(".")[0]
    else:
        for child in node.named_children:
            yield from _bound(child)


def _after_opening(root: Node) -> int:
    """Where imports may begin: after what has to stay first (`#!`, package clause, docstring, future imports)."""
    end = 0
    for node in root.named_children:
        is_docstring = node.type == "expression_statement" and (node.text or b"")[-1:] in (b'"', b"'")
        if node.type not in _OPENINGS and not is_docstring:
            break
        end = node.end_byte
    return end


def _column(source: str, function: Function) -> int:
    """Width of the white space before the line on which the function begins."""
    return len(_margin(source, function))


def _margin(source: str, function: Function) -> str:
    line = source.encode()[: function.start_byte].rpartition(b"\n")[2].decode(errors="replace")
    return line[: _indent(line)]


def _placed(path: str, text: str, column: int, old: Function, source: str) -> str:
    """A function's text, that began at `column`, moved to the old one's place and to its tabs or spaces.

    Lines that begin inside a string stay as they are.
    """
    margin = _margin(source, old)
    lines = text.split("\n")
    inside = _lines_inside_strings(path, text)
    later = [line for n, line in enumerate(lines[1:], 1) if line.strip() and n not in inside]
    own = _own_column(path, later, column)
    tabs = _uses_tabs(old.text, margin)
    step = min((n for line in later if (n := _indent(line) - own) > 0), default=4)
    moved = [line if n in inside else _moved(line, own, margin, step, tabs) for n, line in enumerate(lines[1:], 1)]
    return "\n".join([lines[0], *moved])


def _lines_inside_strings(path: str, text: str) -> set[int]:
    """The 0-based lines that begin inside a string literal."""
    found: set[int] = set()
    waiting = [syntax_tree(path, text.encode())]
    while waiting:
        node = waiting.pop()
        if node.type in _STRINGS:
            found.update(range(node.start_point[0] + 1, node.end_point[0] + 1))
        else:
            waiting += node.children
    return found


def _own_column(path: str, later: list[str], column: int) -> int:
    """The column a definition's lines are relative to. An answer often lacks the first line's own indentation."""
    if not later:
        return column
    indents = [_indent(line) for line in later]
    if not path.endswith(".py"):
        return indents[-1] if later[-1].lstrip().startswith(("}", ")")) else column
    step = 1 if later[0].startswith("\t") else 4
    return max(column, min(indents) - step)


def _uses_tabs(text: str, margin: str) -> bool | None:
    """Whether a function is indented by tabs; None when it shows neither tabs nor spaces."""
    found = re.search(r"\n([ \t])[ \t]*\S", f"{text}\n{margin}|")
    return found[1] == "\t" if found else None


def _moved(line: str, own: int, margin: str, step: int, tabs: bool | None) -> str:
    if not line.strip():
        return line
    indent = line[: _indent(line)][own:]
    if tabs:
        indent = indent.replace(" " * step, "\t")
    elif tabs is False:
        indent = indent.replace("\t", "    ")
    return margin + indent + line.lstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
