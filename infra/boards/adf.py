"""Atlassian Document Format, the JSON tree Jira keeps texts in, to and from Markdown-like plain text.

Reading never fails: whatever is not understood is shown by the text in it. Writing makes paragraphs, headings, lists,
code, bold and web links, and never a mention, so that a text cannot call on people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Node = dict[str, Any]

_DEEPEST = 40
"""Levels of nesting that are read (what lies deeper is shown as `…`); lists are written half as deep."""
_INLINE = re.compile(
    r"`(?P<code>[^`\n]+)`|\*\*(?P<strong>[^*\n]+)\*\*|\[(?P<text>[^\[\]\n]+)\]\((?P<href>https?://[^\s()<>\"]+)\)"
)
_LANGUAGE = re.compile(r"[\w+#.-]{1,50}")
_FENCE = re.compile(r"[ ]{0,3}(?P<ticks>`{3,})(?P<language>[^`]*)")
_HEADING = re.compile(r"(?P<level>#{1,6})[ \t]+(?P<text>\S.*)")
_ITEM = re.compile(r"(?P<indent>[ \t]*)(?P<bullet>[-*+]|(?P<number>\d{1,9})[.)])[ \t]+(?P<text>\S.*)")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def to_text(document: object) -> str:
    """The text of a document. A plain string (older wiki text) is returned as it is; nothing at all is ''."""
    return _clean(document if isinstance(document, str) else _block(document, 0).strip("\n"))


def to_document(text: str) -> Node:
    """A document of `text`. Line ends are kept."""
    return {"type": "doc", "version": 1, "content": _blocks_of(_clean(text).split("\n"))}


def _clean(text: str) -> str:
    """With plain line ends, and `�` for what databases and JSON readers refuse: control characters, half characters."""
    return _UNPRINTABLE.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


# Reading


def _block(node: object, depth: int) -> str:
    """One block without blank lines around it."""
    if depth > _DEEPEST:
        return "…"
    if not isinstance(node, dict):
        return ""
    return _BLOCKS.get(_kind(node), _anything)(node, depth)


def _anything(node: Node, depth: int) -> str:
    """Blocks apart from each other, words beside each other: a node may hold either."""
    parts: list[str] = []
    line = ""
    for child in _children(node):
        if _is_inline(child):
            line += _inline(child, depth + 1)
        else:
            parts += [line, _block(child, depth + 1)]
            line = ""
    return "\n\n".join(part for part in (*parts, line or _own_text(node)) if part.strip())


def _heading(node: Node, depth: int) -> str:
    level = _number(_attribute(node, "level"), 1)
    return f"{'#' * min(max(level, 1), 6)} {_anything(node, depth)}"


def _code_block(node: Node, depth: int) -> str:
    code = "".join(_own_text(child) for child in _children(node))
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    language = _LANGUAGE.fullmatch(_words(_attribute(node, "language")))
    return f"{fence}{language[0] if language else ''}\n{code}\n{fence}"


def _bullets(node: Node, depth: int) -> str:
    return "\n".join(_indented("- ", _list_item(child, depth)) for child in _children(node))


def _numbers(node: Node, depth: int) -> str:
    first = _number(_attribute(node, "order"), 1)
    items = enumerate(_children(node), first)
    return "\n".join(_indented(f"{number}. ", _list_item(child, depth)) for number, child in items)


def _tasks(node: Node, depth: int) -> str:
    ticks = ((" ", "x")[_attribute(child, "state") == "DONE"] for child in _children(node))
    items = zip(ticks, _children(node), strict=True)
    return "\n".join(_indented(f"- [{tick}] ", _list_item(child, depth)) for tick, child in items)


def _list_item(node: object, depth: int) -> str:
    """An item's blocks close together, so that a list reads as one."""
    parts = _children(node)
    if not parts or any(map(_is_inline, parts)):
        return _block(node, depth + 1)
    return "\n".join(_block(part, depth + 2) for part in parts)


def _quote(node: Node, depth: int) -> str:
    return "\n".join(f"> {line}".rstrip() for line in _anything(node, depth).split("\n"))


def _table(node: Node, depth: int) -> str:
    rows = [[_block(cell, depth + 2).replace("\n", " ") for cell in _children(row)] for row in _children(node)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _rule(node: Node, depth: int) -> str:
    return "---"


def _expand(node: Node, depth: int) -> str:
    return "\n\n".join(part for part in (_words(_attribute(node, "title")), _anything(node, depth)) if part)


_BLOCKS: dict[str, Callable[[Node, int], str]] = {
    "heading": _heading,
    "codeBlock": _code_block,
    "bulletList": _bullets,
    "orderedList": _numbers,
    "taskList": _tasks,
    "decisionList": _bullets,
    "blockquote": _quote,
    "table": _table,
    "rule": _rule,
    "expand": _expand,
    "nestedExpand": _expand,
}
_INLINES = {"text", "hardBreak", "mention", "emoji", "inlineCard", "date", "status", "mediaInline"}


def _inline(node: object, depth: int) -> str:
    if not isinstance(node, dict):
        return ""
    match _kind(node):
        case "text":
            return _marked(node)
        case "hardBreak":
            return "\n"
        case "inlineCard":
            return _words(_attribute(node, "url"))
        case "date":
            return _date(_attribute(node, "timestamp"))
        case _:
            return _own_text(node) or _anything(node, depth)


def _marked(node: Node) -> str:
    """A text with the marks that carry meaning."""
    text = _words(node.get("text"))
    if not text.strip():
        return text
    marks = node.get("marks")
    by_type = {_kind(mark): mark for mark in (marks if isinstance(marks, list) else [])}
    if "code" in by_type:
        text = f"`{text}`" if "`" not in text else f"`` {text} ``"
    if "strong" in by_type:
        text = f"**{text}**"
    href = _words(_attribute(by_type.get("link"), "href"))
    return f"[{text}]({href})" if href and href != text else text


def _date(timestamp: object) -> str:
    """Milliseconds since 1970, written as a string, as the day in UTC."""
    try:
        return datetime.fromtimestamp(float(_words(timestamp)) / 1000, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return _words(timestamp)


def _own_text(node: object) -> str:
    """What a node shows by itself: its text, or the attribute that stands for it."""
    if not isinstance(node, dict):
        return ""
    shown = (node.get("text"), *(_attribute(node, name) for name in ("text", "shortName", "alt", "url")))
    return next((words for words in map(_words, shown) if words), "")


def _is_inline(node: object) -> bool:
    return _kind(node) in _INLINES


def _kind(node: object) -> str:
    return _words(node.get("type")) if isinstance(node, dict) else ""


def _children(node: object) -> list[object]:
    content = node.get("content") if isinstance(node, dict) else None
    return content if isinstance(content, list) else []


def _attribute(node: object, name: str) -> object:
    attributes = node.get("attrs") if isinstance(node, dict) else None
    return attributes.get(name) if isinstance(attributes, dict) else None


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else default


def _indented(bullet: str, text: str) -> str:
    return bullet + re.sub(r"\n(?!\n)", "\n" + " " * len(bullet), text)


# Writing


def _blocks_of(lines: list[str], depth: int = 0) -> list[Node]:
    blocks: list[Node] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        block, at = _next_block(lines, at, depth)
        blocks.append(block)
    return blocks


def _next_block(lines: list[str], at: int, depth: int) -> tuple[Node, int]:
    """The block that starts at line `at`, and the line after it."""
    if fence := _FENCE.fullmatch(lines[at]):
        return _fenced(lines, at, fence)
    if heading := _HEADING.fullmatch(lines[at]):
        level = len(heading["level"])
        return {"type": "heading", "attrs": {"level": level}, "content": _words_of([heading["text"]])}, at + 1
    if depth < _DEEPEST // 2 and (item := _ITEM.fullmatch(lines[at])):
        return _list_of(lines, at, item, depth)
    end = at + 1
    while end < len(lines) and lines[end].strip() and not _starts_block(lines[end]):
        end += 1
    return {"type": "paragraph", "content": _words_of(lines[at:end])}, end


def _starts_block(line: str) -> bool:
    return any(start.fullmatch(line) for start in (_FENCE, _HEADING, _ITEM))


def _fenced(lines: list[str], at: int, fence: re.Match[str]) -> tuple[Node, int]:
    """Code up to the closing fence, or to the end when there is none."""
    end = at + 1
    while end < len(lines) and not re.fullmatch(rf" {{0,3}}`{{{len(fence['ticks'])},}}[ \t]*", lines[end]):
        end += 1
    code = "\n".join(lines[at + 1 : end])
    language = _LANGUAGE.fullmatch(fence["language"].strip())
    block: Node = {"type": "codeBlock", "attrs": {"language": language[0]} if language else {}}
    return block | {"content": [{"type": "text", "text": code}] if code else []}, end + 1


def _list_of(lines: list[str], at: int, first: re.Match[str], depth: int) -> tuple[Node, int]:
    """Items of one kind and indentation; lines indented further belong to the item above them."""
    items: list[Node] = []
    while at < len(lines) and (item := _ITEM.fullmatch(lines[at])) and _same_list(first, item):
        end = at + 1
        while end < len(lines) and _belongs(lines, end, len(item["indent"])):
            end += 1
        inner = [item["text"], *_dedented(lines[at + 1 : end], item.start("text"))]
        items.append({"type": "listItem", "content": _in_item(_blocks_of(inner, depth + 1))})
        at = end
    if first["number"] is None:
        return {"type": "bulletList", "content": items}, at
    return {"type": "orderedList", "attrs": {"order": int(first["number"])}, "content": items}, at


def _same_list(first: re.Match[str], item: re.Match[str]) -> bool:
    same_kind = (first["number"] is None) == (item["number"] is None)
    return same_kind and len(item["indent"]) <= len(first["indent"])


def _belongs(lines: list[str], at: int, indent: int) -> bool:
    """A line further in than the bullet, or a blank one before such a line."""
    line = lines[at] or (lines[at + 1] if at + 1 < len(lines) else "")
    return bool(line.strip()) and len(line) - len(line.lstrip()) > indent


def _dedented(lines: list[str], width: int) -> list[str]:
    return [line[min(width, len(line) - len(line.lstrip())) :] for line in lines]


def _in_item(blocks: list[Node]) -> list[Node]:
    """Jira takes no headings in a list item: they become paragraphs. An item starts with a paragraph."""
    plain = [{"type": "paragraph", "content": b["content"]} if b["type"] == "heading" else b for b in blocks]
    return plain if plain and plain[0]["type"] == "paragraph" else [{"type": "paragraph", "content": []}, *plain]


def _words_of(lines: list[str]) -> list[Node]:
    """The inline nodes of one paragraph; its line ends stay."""
    nodes: list[Node] = []
    for number, line in enumerate(lines):
        nodes += [{"type": "hardBreak"}] if number else []
        nodes += _spans(line)
    return nodes


def _spans(line: str) -> list[Node]:
    nodes: list[Node] = []
    at = 0
    for found in _INLINE.finditer(line):
        nodes += _text(line[at : found.start()])
        nodes += _span(found)
        at = found.end()
    return nodes + _text(line[at:])


def _span(found: re.Match[str]) -> list[Node]:
    if found["code"] is not None:
        return _text(found["code"], {"type": "code"})
    if found["strong"] is not None:
        return _text(found["strong"], {"type": "strong"})
    return _text(found["text"], {"type": "link", "attrs": {"href": found["href"]}})


def _text(text: str, *marks: Node) -> list[Node]:
    """No node for no text: Jira refuses empty ones."""
    if not text:
        return []
    return [{"type": "text", "text": text, **({"marks": list(marks)} if marks else {})}]
