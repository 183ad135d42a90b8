"""The shipped table of housekeeping: which chores there are, when each one runs, and how a schedule is written."""

from __future__ import annotations

import re
from typing import NamedTuple


class Chore(NamedTuple):
    """One kind of housekeeping. `cron` is in UTC; `label` goes onto its tickets and says what kind of work they are, "" for
    a chore that makes none."""

    cron: str
    about: str
    label: str = ""


CHORES: dict[str, Chore] = {
    "bug-hunter": Chore("0 5 * * *", "failing and flaky tests, lint rules that mean bugs, bugs a test proves", "bug"),
    "security-audit": Chore("30 5 * * *", "dangerous calls and secrets in the code", "security"),
    "dependency-audit": Chore("0 6 * * *", "pinned dependencies with published advisories", "dependencies"),
    "technical-debt": Chore("30 6 * * 1", "old TODO and FIXME notes, code that nothing uses", "debt"),
    "test-gaps": Chore("0 7 * * 2", "skipped tests, functions that no test mentions", "test"),
    "simplify": Chore("30 7 * * 3", "functions that are too long or branch too much", "refactor"),
    "docs": Chore("0 7 * * 5", "merged changes that the changelog does not mention", "docs"),
    "issue-triage": Chore(
        "*/15 * * * *", "new tickets without a label: kind of work, likely duplicates, what is missing"
    ),
    "pr-guardian": Chore(
        "*/30 * * * *", "new pull requests that the factory did not open: measured, reviewed, commented on"
    ),
}
"""In the order in which an empty queue is filled again. The bug hunter's hour is given (W1); the others keep out of its way."""

_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of the week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_PART = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>[1-9][0-9]{0,2}))?")


def checked_cron(text: str) -> str:
    """The schedule as it is. Raises ValueError that names the field that is wrong."""
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{text!r} is no schedule: it has {len(fields)} fields and needs five, as in '0 5 * * *'")
    for field, (name, lowest, highest, words) in zip(fields, _FIELDS, strict=True):
        if not all(_fits(part, lowest, highest, words) for part in field.split(",")):
            raise ValueError(
                f"{text!r} is no schedule: {field!r} is no {name} ({lowest} to {highest}, `*`, a-b or a,b)"
            )
    return text


def _fits(part: str, lowest: int, highest: int, words: tuple[str, ...]) -> bool:
    found = _PART.fullmatch(part.lower())
    if found is None:
        return False
    bounds = [_number(each, lowest, words) for each in found.group("first", "last") if each is not None]
    return all(lowest <= bound <= highest for bound in bounds) and bounds == sorted(bounds)


def _number(text: str, lowest: int, words: tuple[str, ...]) -> int:
    """-1 for what is neither a number nor a word of the field."""
    if text in words:
        return words.index(text) + lowest
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 else -1
