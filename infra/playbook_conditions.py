"""The conditions of a playbook's steps: comparisons of parameters and of earlier steps' ends, with and, or, not. Nothing runs.

`service == "shop"`, `steps.check.exit != 0`, `steps.check.outcome == "skipped" and not (mode == "fast")`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Facts = Mapping[str, str | int]

_TOKEN = re.compile(
    r"""\s*(?:(?P<op>==|!=|\(|\))|(?P<text>"[^"\\]*"|'[^'\\]*')|(?P<number>-?\d{1,9})\b|(?P<name>[a-z][\w.-]*))"""
)
_DEEPEST = 20
_STEP = re.compile(r"(steps\.[a-z][a-z0-9-]*)\.(exit|outcome)")


class Unclear(ValueError):
    """A condition that is not understood; the message says where."""


@dataclass(frozen=True)
class Comparison:
    name: str
    same: bool
    value: str | int

    def holds(self, facts: Facts) -> bool:
        """A step that did not run has no exit code, which equals nothing."""
        return (facts.get(self.name) == self.value) is self.same


@dataclass(frozen=True)
class Group:
    word: Literal["and", "or", "not"]
    parts: tuple[Condition, ...]

    def holds(self, facts: Facts) -> bool:
        found = [part.holds(facts) for part in self.parts]
        return not found[0] if self.word == "not" else (all if self.word == "and" else any)(found)


Condition = Comparison | Group


def parse_condition(text: str) -> Condition:
    """Raises Unclear."""
    reader = _Reader(_tokens(text), text)
    found = reader.either(0)
    reader.expect_end()
    return found


def named_in(condition: Condition) -> set[str]:
    """The parameters and steps (`steps.ID`) that a condition speaks of."""
    if isinstance(condition, Group):
        return set().union(*(named_in(part) for part in condition.parts))
    step = _STEP.fullmatch(condition.name)
    return {step[1] if step else condition.name}


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place, end = list[tuple[str, str]](), 0, len(text.rstrip())
    while place < end:
        token = _TOKEN.match(text, place)
        if token is None:
            raise Unclear(f"cannot be understood at {text[place:].strip()[:30]!r}")
        kind = token.lastgroup or ""
        found.append((kind, token[kind]))
        place = token.end()
    return found


class _Reader:
    """Recursive descent: either -> both -> one."""

    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self._tokens, self._text, self._place = tokens, text, 0

    def either(self, depth: int) -> Condition:
        return self._joined("or", depth)

    def expect_end(self) -> None:
        if self._place < len(self._tokens):
            raise Unclear(f"{self._tokens[self._place][1]!r} is not expected there, in {self._text!r}")

    def _joined(self, word: Literal["or", "and"], depth: int) -> Condition:
        parts = [self._joined("and", depth) if word == "or" else self._one(depth)]
        while self._take("name", word):
            parts.append(self._joined("and", depth) if word == "or" else self._one(depth))
        return parts[0] if len(parts) == 1 else Group(word, tuple(parts))

    def _one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise Unclear("is nested too deeply")
        if self._take("name", "not"):
            return Group("not", (self._one(depth + 1),))
        if self._take("op", "("):
            inner = self.either(depth + 1)
            self._need("op", ")")
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        name = self._need("name")
        if name.startswith("steps.") and not _STEP.fullmatch(name):
            raise Unclear(f"{name!r} is neither `steps.ID.exit` nor `steps.ID.outcome`")
        same = not self._take("op", "!=")
        if same:
            self._need("op", "==")
        if (number := self._take("number")) is not None:
            return Comparison(name, same, int(number))
        return Comparison(name, same, self._need("text")[1:-1])

    def _take(self, kind: str, value: str | None = None) -> str | None:
        if self._place < len(self._tokens):
            found = self._tokens[self._place]
            if found[0] == kind and value in (None, found[1]):
                self._place += 1
                return found[1]
        return None

    def _need(self, kind: str, value: str | None = None) -> str:
        found = self._take(kind, value)
        if found is None:
            raise Unclear(f'a {value or kind} is missing in {self._text!r}, as in `service == "shop"`')
        return found
