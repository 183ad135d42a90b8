"""The learning suite: its tickets are sound, the path it measures teaches, and its table counts right."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.learning import ARMS, arm_environment, scripted_rules, table, work_through
from benchmarks.repeating import RULES, TICKETS, Repeating, Rule, files, in_order
from infra.lessons import EQUAL_FAILURES
from tests.flows.conftest import Factory, _prefect, factory  # noqa: F401  fixtures


def house_tests(folder: Path, bodies: dict[str, str]) -> dict[str, bool]:
    """Whether each house test passes with these functions written."""
    for path, text in {**files(), **bodies}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    command = [sys.executable, "-m", "pytest", "-v", "--tb=no", "-p", "no:cacheprovider", "tests"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False).stdout
    return {rule.test: f"::{rule.test} PASSED" in said for rule in RULES}


@pytest.mark.parametrize("kind", ["raise NotImplementedError", "kept"])
def test_functions_that_are_not_written_and_those_that_keep_the_rules_pass_the_house_tests(
    tmp_path: Path, kind: str
) -> None:
    bodies = {ticket.path: ticket.source(getattr(ticket, kind, kind)) for ticket in TICKETS}
    assert house_tests(tmp_path, bodies) == {rule.test: True for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.folder)
def test_what_comes_naturally_breaks_the_one_rule_of_its_folder(tmp_path: Path, rule: Rule) -> None:
    bodies = {ticket.path: ticket.source(ticket.natural) for ticket in TICKETS if ticket.rule == rule}
    assert house_tests(tmp_path, bodies) == {each.test: each != rule for each in RULES}


@pytest.mark.parametrize("ticket", TICKETS, ids=lambda ticket: ticket.name)
def test_a_tickets_examples_hold_for_both_bodies_and_not_before(ticket: Repeating) -> None:
    for body, right in (("raise NotImplementedError", False), (ticket.natural, True), (ticket.kept, True)):
        known: dict[str, object] = {"ShopError": ValueError, "notice": str}
        exec(ticket.source(body).replace("from shop.common import *", ""), known)
        examples = doctest.DocTestParser().get_doctest(ticket.body, known, "ticket", None, 0)
        ran = doctest.DocTestRunner(verbose=False).run(examples, out=lambda _: None)
        assert (ran.attempted, ran.failed == 0) == (2, right)


def test_no_ticket_says_a_rule_of_the_house() -> None:
    told = "\n".join(ticket.text() for ticket in TICKETS)
    assert not [word for word in ("ShopError", "notice", ".format", "f-string") if word in told]


def test_tickets_come_one_rule_after_another_and_the_same_in_both_arms() -> None:
    assert [ticket.position for ticket in in_order(6)] == [n for n in range(1, 7) for _ in RULES]
    assert len(in_order(4, 1)) == 4
    intents = {ticket.rule.label: ticket.rule for ticket in TICKETS}
    assert len(intents) == len(RULES), "lessons are kept by kind of work"
    off, on = (arm_environment(Path("/f"), arm, 7, {}) for arm in ARMS)
    assert {name for name in off if off[name] != on[name]} == {
        "DARKFACTORY_HOME", "DARKFACTORY_BOARD", "DARKFACTORY_MEMORY", "DARKFACTORY_LEARNING",
    }  # fmt: skip


def test_the_table_compares_arms_before_and_after_there_was_something_to_learn() -> None:
    rows = [
        {"arm": arm, "rule": "r", "position": n, "solved": arm == "on" and n > EQUAL_FAILURES, "kept_rule": n > 3,
         "corrections_told": 0, "calls": 1, "seconds": 2.0}
        for arm in ("off", "on") for n in range(1, 6)
    ]  # fmt: skip
    said = table(rows, "Model scripted")
    assert said.startswith("Model scripted\n")
    assert "| off | 5 | 0/5 (0%) | 0/3 (0%) | 0/2 (0%) |" in said
    assert "| on | 5 | 2/5 (40%) | 0/3 (0%) | 2/2 (100%) |" in said
    assert "| r | 0/2 (0%) | 2/2 (100%) |" in said


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
async def test_after_three_failures_of_a_rule_the_fourth_ticket_keeps_it(
    factory: Factory,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L1, the whole coding path with a model that keeps a rule only when it is told."""
    monkeypatch.setenv("DARKFACTORY_MAX_SAMPLES", "1")
    monkeypatch.setenv("DARKFACTORY_MAX_ROUNDS", "1")
    tickets = in_order(4, 1)
    factory.model.rules = scripted_rules(tickets)
    rows = await work_through(tickets, tmp_path / "on", "on", "coding")
    assert [(row["solved"], row["corrections_told"]) for row in rows] == [(False, 0)] * 3 + [(True, 1)]
    assert await work_through(tickets, tmp_path / "on", "on", "coding") == rows
