"""What kind of work a ticket asks for: one of the few words that success is counted by and that corrections belong to."""

from __future__ import annotations

import re
from typing import Literal, get_args

from infra.boards import Ticket

Intent = Literal["bug", "feature", "refactoring", "tests", "docs", "maintenance", "operation"]

_LABELS: dict[str, Intent] = {
    "bug": "bug", "defect": "bug", "fix": "bug", "regression": "bug", "incident": "bug",
    "feature": "feature", "enhancement": "feature", "story": "feature",
    "refactor": "refactoring", "cleanup": "refactoring", "debt": "refactoring",
    "test": "tests", "coverage": "tests",
    "doc": "docs", "documentation": "docs",
    "chore": "maintenance", "dependencies": "maintenance", "security": "maintenance", "maintenance": "maintenance", "build": "maintenance", "ci": "maintenance",
    "operation": "operation", "ops": "operation", "runbook": "operation",
}  # fmt: skip
_TITLES: tuple[tuple[Intent, str], ...] = (
    ("operation", r"(restart|reboot|rotate|re-?run|clear|flush|purge|scale|drain)\b"),
    ("docs", r"(docs?\b|document(?!s? (are|is) )|readme|changelog|typo)"),
    ("tests", r"((add|write|improve) (\w+ ){0,2}tests?\b|tests?:|cover )"),
    ("refactoring", r"(refactor|simplify|clean ?up|extract|rename|deduplicate)"),
    ("maintenance", r"(bump|upgrade|update dependenc|pin |chore|ci:|build:)"),
    ("bug", r".*\b(fix(es|ed)?|bug|crash(es|ed)?|fail(s|ed|ing|ure)?|wrong(ly)?|broken|error|raises?|incorrect(ly)?|regression"
            r"|does not|doesn't|never|instead of|off by one|leaks?)\b"),
)  # fmt: skip


def intent_of(ticket: Ticket) -> Intent:
    """By the ticket's labels, else by how its title begins or what it complains of; `feature` when nothing says otherwise."""
    for label in ticket.labels:
        for word in re.split(r"[^a-z]+", label.casefold()):
            found = _LABELS.get(word) or _LABELS.get(word.removesuffix("s"))
            if found is not None:
                return found
    title = re.sub(r"^\s*\[[^\]]*\]\s*", "", ticket.title.casefold())
    return next((intent for intent, pattern in _TITLES if re.match(pattern, title)), "feature")


INTENTS = get_args(Intent)
