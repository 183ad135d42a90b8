"""Which kind of work a ticket asks for."""

from __future__ import annotations

import pytest

from infra.boards import Ticket
from tasks.intents import INTENTS, intent_of


def asked(title: str, *labels: str) -> str:
    return intent_of(Ticket(key="T-1", title=title, body="", state="todo", labels=labels))


@pytest.mark.parametrize(
    ("title", "intent"),
    [
        ("Cart total is wrong when a coupon is used", "bug"),
        ("[shop] Parser crashes on an empty line", "bug"),
        ("split_words() raises IndexError", "bug"),
        ("Add an export to CSV", "feature"),
        ("Refactor the order service", "refactoring"),
        ("Add tests for the tax rules", "tests"),
        ("Document the configuration file", "docs"),
        ("Bump httpx to 0.28", "maintenance"),
        ("Restart the web service on hive", "operation"),
    ],
)
def test_a_title_tells(title: str, intent: str) -> None:
    assert asked(title) == intent


def test_a_label_wins_over_the_title() -> None:
    assert asked("Cart total is wrong", "P1", "kind/documentation") == "docs"
    assert asked("Add a button", "Bugs") == "bug"


def test_a_label_that_says_nothing_leaves_it_to_the_title() -> None:
    assert asked("Restart the cache", "urgent", "") == "operation"


def test_all_intents_are_named_once() -> None:
    assert len(INTENTS) == len(set(INTENTS)) == 7
