"""Source code as functions: find them, splice corrected ones in, see whether a file parses. Built on tree-sitter.

Knows Python, JavaScript, TypeScript and Go; any other file has no functions and is edited as a whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

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
_CLASSES = {"class_definition", "class_declaration"}
_IMPORTS = {"import_statement", "import_from_statement", "import_declaration", "future_import_statement"}


class Function(Frozen):
    """One function or method. Lines are 1-based and inclusive; bytes index the UTF-8 source."""

    name: str
    owner: str = ""
    """The enclosing class or function, dotted; empty at module level."""
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    text: str

    @property
    def qualified_name(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


@cache
def _parser(suffix: str) -> Parser:
    return Parser(Language(_GRAMMARS[suffix]()))


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
    return Function(
        name=name,
        owner=owner,
        start_line=node.start_point[0] + 1,
        end_line=node.end_point[0] + 1,
        start_byte=node.start_byte,
        end_byte=node.end_byte,
        text=raw[node.start_byte : node.end_byte].decode(errors="replace"),
    )


def _walk(node: Node, owner: str) -> Iterator[tuple[Node, str, str]]:
    for child in node.named_children:
        name = _name_of(child)
        if name and (child.type in _FUNCTIONS or child.type == "variable_declarator"):
            yield child, name, owner
        inner = f"{owner}.{name}" if owner and name else name or owner
        yield from _walk(child, inner)


def _name_of(node: Node) -> str:
    """The name a definition gives, or "" for a node that defines no function and no class."""
    value = node.child_by_field_name("value")
    is_value = node.type == "variable_declarator" and value is not None and value.type in _FUNCTION_VALUES
    if not is_value and node.type not in _FUNCTIONS | _CLASSES:
        return ""
    name = node.child_by_field_name("name")
    return name.text.decode() if name is not None and name.text else ""


def splice(path: str, source: str, answer: str) -> str | None:
    """`source` with every function that `answer` defines under a known name replaced by the answer's text.

    Decorators and everything else of the file stay. Imports and module-level functions that only the answer has are
    added. None when the answer does not parse, defines no function of the file, or the result does not parse.
    """
    answer = _dedent(answer)
    if not parses(path, answer):
        answer = f"class Answer {{\n{answer}\n}}"  # a lone method of a brace language
    if not parses(path, answer):
        return None
    replacements = _matches(functions(path, source), functions(path, answer))
    if not replacements:
        return None
    additions = _new_functions(path, source, answer)
    result = source.encode()
    first = min(old.start_byte for old, _ in replacements)
    for old, new in sorted(replacements, key=lambda pair: -pair[0].start_byte):
        result = result[: old.start_byte] + _indented(new, _column(source, old)) + result[old.end_byte :]
    if additions:
        at = _outermost_start(path, source, first)
        result = result[:at] + "".join(f"{text}\n\n\n" for text in additions).encode() + result[at:]
    text = _with_imports(path, result.decode(), answer)
    return text if parses(path, text) else None


def _matches(old: list[Function], new: list[Function]) -> list[tuple[Function, Function]]:
    """Pairs each answered function with the one it replaces; nested ones go with their parents."""
    pairs: dict[str, tuple[Function, Function]] = {}
    for function in new:
        known = [f for f in old if f.qualified_name == function.qualified_name]
        known = known or [f for f in old if f.name == function.name]
        if not known:
            continue
        target = max(known, key=lambda f: difflib.SequenceMatcher(None, f.text, function.text).ratio())
        pairs[target.qualified_name] = (target, function)
    return [pair for name, pair in pairs.items() if not any(name.startswith(f"{other}.") for other in pairs)]


def _new_functions(path: str, source: str, answer: str) -> list[str]:
    """Module-level functions that only the answer has and that its replacements name."""
    known = {f.name for f in functions(path, source)}
    used = {w for f in functions(path, answer) if f.name in known for w in re.findall(r"\w+", f.text)}
    fresh = [f for f in functions(path, answer) if not f.owner and f.name not in known and f.name in used]
    return [f.text for f in fresh if f.text.startswith(("def ", "async def ", "function ", "func "))]


def _outermost_start(path: str, source: str, byte: int) -> int:
    """Start of the module-level statement that holds `byte`."""
    root = syntax_tree(path, source.encode())
    return next((n.start_byte for n in root.named_children if n.start_byte <= byte < n.end_byte), 0)


def _with_imports(path: str, source: str, answer: str) -> str:
    """`source` with the answer's module-level imports that it lacks, after its own imports."""
    own_imports = _imports(path, source)
    missing = [text for text in _imports(path, answer) if text not in own_imports]
    if not missing:
        return source
    raw = source.encode()
    own = [n for n in syntax_tree(path, raw).named_children if n.type in _IMPORTS]
    at = own[-1].end_byte if own else _after_docstring(path, raw)
    return (raw[:at] + ("\n" + "\n".join(missing)).encode() + raw[at:]).decode()


def _imports(path: str, source: str) -> list[str]:
    nodes = [n for n in syntax_tree(path, source.encode()).named_children if n.type in _IMPORTS]
    return [n.text.decode() for n in nodes if n.text]


def _after_docstring(path: str, raw: bytes) -> int:
    nodes = syntax_tree(path, raw).named_children
    first = nodes[0] if nodes else None
    is_docstring = (
        first is not None
        and first.type == "expression_statement"
        and raw[first.start_byte : first.end_byte][-1:] in b"\"'"
    )
    return first.end_byte if first is not None and is_docstring else 0


def _column(source: str, function: Function) -> int:
    line_start = source.encode().rfind(b"\n", 0, function.start_byte) + 1
    prefix = source.encode()[line_start : function.start_byte]
    return len(prefix) if not prefix.strip() else len(prefix) - len(prefix.lstrip())


def _indented(function: Function, column: int) -> bytes:
    """The function's text for a place at `column`: its later lines move by the difference to their own column."""
    lines = function.text.split("\n")
    own = _body_column(lines)
    body = [_moved(line, column - own) for line in lines[1:]]
    return "\n".join([lines[0], *body]).encode()


def _body_column(lines: list[str]) -> int:
    """The column the definition stood at, read from its last line (closing brace) or guessed from the body."""
    later = [line for line in lines[1:] if line.strip()]
    if not later:
        return 0
    smallest = min(len(line) - len(line.lstrip()) for line in later)
    closes = later[-1].lstrip().startswith(("}", ")"))
    step = 0 if closes and len(later[-1]) - len(later[-1].lstrip()) == smallest else 4
    return max(0, smallest - step)


def _moved(line: str, by: int) -> str:
    if by >= 0 or not line.strip():
        return " " * by + line if line.strip() else line
    return line[min(-by, len(line) - len(line.lstrip())) :]


def _dedent(text: str) -> str:
    """`text` without common indentation, so that a lone method parses at module level."""
    lines = [line for line in text.split("\n") if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return "\n".join(line[margin:] for line in text.split("\n")) if margin else text
