"""The steward's one rule: what is seen, what was done and the policy decide, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.pull_requests import Check, Review
from infra.sections import StewardSection
from infra.stewardships import Handled, Stewardship, Wanted
from tasks.stewarding import Seen, next_step, revived

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
RED, GREEN, RUNS = (Check(name="build", state=state) for state in ("failed", "passed", "pending"))


def seen(**changes: Any) -> Seen:
    return Seen(**{"head_sha": "a" * 40, "base_sha": "b" * 40, **changes})


def row(**changes: Any) -> Stewardship:
    return Stewardship(**{"repository": "shop", "branch": "agent/1", "board": "folder", "ticket": "1", **changes})


def said(verdict: Any = "commented", author: str = "ada", minutes: int = 0, sha: str = "a" * 40) -> Review:
    return Review(author=author, body="Round it.", at=NOON + timedelta(minutes=minutes), verdict=verdict, head_sha=sha)


def kind(policy: dict[str, Any] | None = None, given: Stewardship | None = None, **look: Any) -> str:
    return next_step(seen(**look), given or row(), StewardSection(**(policy or {}))).kind


@pytest.mark.parametrize(
    ("look", "wanted"),
    [
        ({}, "wait"),
        ({"state": "merged"}, "end"),
        ({"state": "closed", "checks": (RED,)}, "end"),
        ({"checks": (RED,)}, "ci"),
        ({"checks": (RED, RUNS)}, "wait"),
        ({"said": (said(),), "checks": (RED,)}, "review"),
        ({"said": (said("approved"),)}, "wait"),
        ({"said": (said("changes-requested"),)}, "review"),
        ({"conflicts": ("a.py",), "behind": True, "said": (said(),)}, "conflict"),
        ({"behind": True}, "wait"),
    ],
)
def test_one_thing_is_done_at_a_time_and_a_conflict_comes_first(look: dict[str, Any], wanted: str) -> None:
    assert kind(**look) == wanted


def test_words_that_were_heard_are_not_worked_on_again() -> None:
    heard = row(handled=Handled(heard=NOON))
    assert kind(given=heard, said=(said(),)) == "wait"
    assert kind(given=heard, said=(said(), said(minutes=1))) == "review"


@pytest.mark.parametrize(
    ("counter", "look"),
    [
        ("ci_fixes", {"checks": (RED,)}),
        ("review_rounds", {"said": (said(),)}),
        ("conflict_fixes", {"conflicts": ("a.py",), "behind": True}),
    ],
)
def test_every_kind_of_round_has_a_bound_of_its_own(counter: str, look: dict[str, Any]) -> None:
    """RB6"""
    assert kind({f"max_{counter}": 2}, row(**{counter: 1}), **look) != "park"
    assert kind({f"max_{counter}": 2}, row(**{counter: 2}), **look) == "park"
    assert kind({f"max_{counter}": 2}, row(**{counter: 2, "extra": 1}), **look) != "park"
    others = {"ci_fixes", "review_rounds", "conflict_fixes"} - {counter}
    assert kind({f"max_{counter}": 2}, row(**dict.fromkeys(others, 9)), **look) != "park"


def test_proof_is_wanted_once_for_a_commit_and_failed_proof_is_a_failed_check() -> None:
    assert kind({"qa": "make qa"}) == "qa"
    assert kind({"qa": "make qa"}, row(handled=Handled(qa="a" * 40, qa_exit=0))) == "wait"
    assert kind({"qa": "make qa"}, row(handled=Handled(qa="c" * 40, qa_exit=0))) == "qa"
    assert kind({"qa": "make qa"}, checks=(RED,)) == "ci"


@pytest.mark.parametrize(
    ("merge", "look", "wanted"),
    [
        ("never", {"checks": (GREEN,)}, "wait"),
        ("when-green", {"checks": (GREEN,)}, "merge"),
        ("when-green", {"checks": (GREEN, RUNS)}, "wait"),
        ("when-green", {}, "wait"),
        ("when-green", {"checks": (GREEN,), "draft": True}, "wait"),
        ("when-green", {"checks": (GREEN,), "behind": True}, "update"),
        ("when-approved", {"checks": (GREEN,)}, "wait"),
        ("when-approved", {"checks": (GREEN,), "said": (said("approved"),)}, "merge"),
        ("when-approved", {"checks": (GREEN,), "said": (said("approved", sha="c" * 40),)}, "wait"),
    ],
)
def test_merging_needs_the_policy_and_proof(merge: str, look: dict[str, Any], wanted: str) -> None:
    assert kind({"merge": merge}, **look) == wanted


def test_one_refusal_outweighs_an_approval_until_it_is_taken_back() -> None:
    asked = said("changes-requested", author="bob", minutes=1)
    heard = row(handled=Handled(heard=NOON + timedelta(hours=1)))
    look = {"checks": (GREEN,), "said": (said("approved"), asked)}
    assert kind({"merge": "when-approved"}, heard, **look) == "wait"
    look["said"] = (*look["said"], said("approved", author="bob", minutes=2))
    assert kind({"merge": "when-approved"}, heard, **look) == "merge"


def test_what_is_parked_waits_for_a_persons_words_or_commit() -> None:
    at = Handled(parked_head="a" * 40, parked_heard=NOON)
    parked = row(state="parked", handled=at, wanted=Wanted(by="x"))
    assert kind(given=parked, checks=(RED,)) == "wait"
    assert not revived(parked, seen(said=(said(),)))
    assert revived(parked, seen(said=(said(), said(minutes=1))))
    assert revived(parked, seen(head_sha="c" * 40, said=(said(),)))
