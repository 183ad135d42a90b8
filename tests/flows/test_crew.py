"""Roles scale with effort up to thirteen (T10), all with sheets of their own, on one shared prompt prefix."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crew import FILES, LARGE, SMALL, TICKETS, edit, plan, shared_prefix, story
from infra.errors import AuthFailed
from infra.llm.scripted import Answer, Fault
from tests.flows.conftest import Factory
from tests.shop import git, make_repository, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

ONE_UNIT = [{"id": "u1", "title": "Take the discount off", "files": ["shop/prices.py"]}]


@pytest.fixture
def capable(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """A factory with a capable model, the three-file shop and both tickets."""
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    factory.forget()
    factory.repository = make_repository(factory.home.parent / "three", FILES)
    for key, (title, body) in TICKETS.items():
        write_ticket(factory.board, key, body, title=title)
    return factory


def asked(factory: Factory, ticket: str) -> Counter[str]:
    """How many questions each role asked, by the transcripts."""
    kept = (factory.home / "objects" / ticket / "transcripts").glob("*.json")
    return Counter(path.name.split("-")[0] for path in kept)


def sheets(factory: Factory, ticket: str) -> dict[str, dict[str, Any]]:
    kept = (factory.home / "objects" / ticket / "attempt-1").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in kept if path.stem != "delivery"}


def members(found: Iterable[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(sheet["role"], sheet["index"]) for sheet in found}


@pytest.mark.slow
async def test_effort_five_is_thirteen_roles_with_a_sheet_each_on_one_shared_prefix(capable: Factory) -> None:
    capable.model.rules = story(LARGE, 5)

    outcome = await capable.run(LARGE)

    assert outcome.decision == "ACCEPT", outcome.reasons
    assert asked(capable, LARGE) == {
        "architect": 1, "coder": 6, "tester": 3, "auditor": 4, "reviewer": 1, "judge": 1, "scribe": 1,
    }  # fmt: skip
    made = sheets(capable, LARGE)
    thirteen = {
        "architect": 1,
        "coder": 3,
        "tester": 3,
        "auditor": 2,
        "reviewer": 1,
        "judge": 1,
        "scribe": 1,
        "collector": 1,
    }
    assert members(made.values()) == {(role, n) for role, size in thirteen.items() for n in range(1, size + 1)}
    assert {sheet["status"] for sheet in made.values()} == {"success"}
    folder = capable.home / "objects" / LARGE / "attempt-1"
    crew = (folder / "crew.md").read_text()
    assert crew.startswith("13 roles for effort 5.")
    assert len([line for line in crew.splitlines() if line.startswith("|")]) == 2 + 13
    for kind in made:
        assert (folder / f"{kind}.md").read_text().startswith("| role | index | round | model |"), kind
    assert len({part["commit"] for part in [made["manifest-1-1"]["made"]]}) == 1
    assert [p["unit"] for p in made["manifest-1-1"]["made"]["parts"]] == ["u1", "u2", "u3", "tests", "tests", "tests"]
    assert sum(sheet["usage"]["calls"] for sheet in made.values()) == outcome.usage.calls == capable.model.calls

    shared = shared_prefix(capable.home / "objects", LARGE)
    share = outcome.usage.cached_tokens / outcome.usage.prompt_tokens
    print(f"13 roles, {outcome.usage.calls} calls, {shared} shared characters, {share:.0%} of prompt tokens cached")
    prefix = capable.model.requests[0].prompt.partition("\n---\n")[0]
    assert len(prefix) - len("system: user: ") <= shared
    assert all(request.prompt.startswith(prefix) for request in capable.model.requests)
    assert share > 0.5


@pytest.mark.slow
async def test_units_are_shared_out_and_their_files_meet_on_one_branch(capable: Factory) -> None:
    capable.model.rules = story(LARGE, 5)
    outcome = await capable.run(LARGE)
    assert outcome.evidence
    assert len(outcome.evidence.fixed) == 3
    changed = git(capable.remote(), "show", "--format=", "--name-only", f"agent/{LARGE}").split()
    assert changed[:3] == ["shop/labels.py", "shop/prices.py", "shop/stock.py"]
    pull_request = capable.pull_request(LARGE)
    assert pull_request
    text = pull_request.read_text()
    assert "Count discount, stock and decimals right" in text
    assert "## Changelog\nDiscounts are taken off." in text
    assert "| scripted" in text, "the cost table names the model"


@pytest.mark.slow
async def test_one_unit_of_a_large_ticket_gets_three_candidates(capable: Factory) -> None:
    more = "```python\nfrom shop.prices import total\n\ndef test_half():\n    assert total([{}], 50) == {}\n```"
    capable.model.rules = story(SMALL, 5, ONE_UNIT, tester_2=(more.format(10, 5),), tester_3=(more.format(30, 15),))
    outcome = await capable.run(SMALL)
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert {sheet["index"] for sheet in sheets(capable, SMALL).values() if sheet["role"] == "coder"} == {1, 2, 3}
    kinds = {kind for kind in sheets(capable, SMALL) if kind.startswith("manifest")}
    assert kinds == {f"manifest-{n}-1" for n in (1, 2, 3)}
    warmth = {r.body["temperature"] for r in capable.model.requests if "Your unit of it" in r.prompt}
    assert len(warmth) == 3, "three candidates of one temperature would be one"


@pytest.mark.slow
async def test_effort_one_asks_five_questions_and_still_has_evidence(capable: Factory) -> None:
    capable.model.rules = story(SMALL, 1, ONE_UNIT)
    outcome = await capable.run(SMALL)
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert outcome.evidence
    assert outcome.evidence.fixed == ("tests/test_small_1.py::test_the_discount_is_taken_off",)
    assert asked(capable, SMALL) == {"architect": 1, "coder": 2, "tester": 1, "judge": 1}
    assert capable.model.calls == outcome.usage.calls == 5


@pytest.mark.slow
async def test_effort_one_writes_no_test_where_the_ticket_brings_its_own(capable: Factory) -> None:
    write_ticket(capable.board, SMALL, "It is wrong:\n\n```\n>>> total([200], 10)\n180.0\n```\n")
    capable.model.rules = story(SMALL, 1, ONE_UNIT)
    outcome = await capable.run(SMALL)
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert asked(capable, SMALL) == {"architect": 1, "coder": 2, "judge": 1}


@pytest.mark.slow
async def test_a_new_prompt_version_asks_only_its_own_role_again(
    capable: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROMPT_VERSION is in the key of every answer of its role and of no other."""
    capable.model.rules = story(SMALL, 2, ONE_UNIT)
    await capable.run(SMALL)
    names = {"planning": "architect", "testing": "tester", "security": "auditor", "review": "reviewer",
             "judging": "judge", "scribe": "scribe"}  # fmt: skip
    for module, role in names.items():
        before = capable.model.calls
        monkeypatch.setattr(importlib.import_module(f"tasks.{module}"), "PROMPT_VERSION", f"{role}-next")
        assert (await capable.run(SMALL)).decision == "ACCEPT"
        new = capable.model.requests[before:]
        assert len(new) == 1, role
        assert {request.rule for request in new} == {_rule_of(role)}


def _rule_of(role: str) -> int:
    return ("judge", "reviewer", "second look", "auditor", "scribe", "architect", "tester").index(role)


DONE = {
    "kind": "already_done", "reason": "left() never goes below none.",
    "proofs": [{"path": "shop/stock.py", "line": 5, "quote": '"""How many pieces are left, never less than none."""'}],
}  # fmt: skip


async def test_a_ticket_that_is_shown_to_be_done_is_turned_down_without_a_line_of_code(capable: Factory) -> None:
    said = json.dumps({"summary": "Nothing to do.", "rejection": DONE})
    capable.model.rules = story(SMALL, 1, ONE_UNIT, architect=(said,))
    outcome = await capable.run(SMALL)
    assert (outcome.decision, outcome.evidence, outcome.pull_request) == ("REJECT", None, None)
    assert capable.model.calls == 1
    ticket = (capable.board / f"{SMALL}.md").read_text()
    assert "state: rejected" in ticket
    assert "left() never goes below none." in ticket
    assert "shop/stock.py:5" in ticket
    assert [v.decision for v in capable.history(SMALL).verdicts] == ["REJECT"]


@pytest.mark.slow
async def test_a_rejection_that_cannot_be_shown_is_asked_about_once_and_then_not_believed(capable: Factory) -> None:
    lie = {**DONE, "proofs": [{"path": "shop/stock.py", "line": 5, "quote": "return max(stock - sold, 0)"}]}
    said = json.dumps({"summary": "Nothing to do.", "rejection": lie})
    capable.model.rules = story(SMALL, 1, ONE_UNIT, architect=(said, said))
    outcome = await capable.run(SMALL)
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert asked(capable, SMALL)["architect"] == 2
    again = next(r.prompt for r in capable.model.requests if "looked up and are not so" in r.prompt)
    assert "What is quoted does not stand in 'shop/stock.py' at line 5." in again


@pytest.mark.slow
async def test_a_plan_that_names_what_is_not_there_is_asked_for_once_more(capable: Factory) -> None:
    units = [{"id": "u1", "title": "t", "files": ["shop/price.py"], "symbols": ["totall"]}]
    capable.model.rules = story(SMALL, 1, ONE_UNIT, architect=(plan(1, units), plan(1, ONE_UNIT)))
    await capable.run(SMALL)
    again = next(r.prompt for r in capable.model.requests if "looked up and are not so" in r.prompt)
    assert "There is no file 'shop/price.py'" in again
    assert "Nothing in the code is called 'totall'" in again
    assert sheets(capable, SMALL)["plan"]["made"]["units"][0]["files"] == ["shop/prices.py"]


async def test_a_failing_step_ends_its_siblings_and_its_own_error_is_raised(capable: Factory) -> None:
    """A dead key at one tester: no sibling asks on, and the caller sees AuthFailed, not a group of errors."""
    slow = Answer(text="{}", delay_seconds=20)
    capable.model.rules = story(LARGE, 5, auditor=(slow,), tester_1=(Fault(kind="status", status=401),))  # type: ignore[arg-type]
    before = asyncio.get_running_loop().time()
    with pytest.raises(AuthFailed):
        await capable.run(LARGE)
    assert asyncio.get_running_loop().time() - before < 20
    asked_then = capable.model.calls
    await asyncio.sleep(1)
    assert capable.model.calls == asked_then
    assert capable.leftovers() == []


@pytest.mark.slow
async def test_the_judge_asks_for_more_and_one_coder_mends_the_whole(capable: Factory) -> None:
    revise = '{"decision": "REVISE", "reasons": ["Too short."], "must_fix": ["Say what a discount is."]}'
    accept = '{"decision": "ACCEPT", "reasons": ["Now it does."], "must_fix": []}'
    capable.model.rules = [*_mending(), *story(LARGE, 5, judge=(revise, accept))]
    outcome = await capable.run(LARGE)
    assert (outcome.decision, outcome.rounds) == ("ACCEPT", 2), outcome.reasons
    text = git(capable.remote(), "show", f"agent/{LARGE}:shop/prices.py")
    assert "(100 - discount) / 100" in text
    assert "0 to 100" in text
    assert "max(stock - sold, 0)" in git(capable.remote(), "show", f"agent/{LARGE}:shop/stock.py")
    second = [s for kind, s in sheets(capable, LARGE).items() if kind.startswith("code-") and s["round"] == 2]
    assert [s["made"]["unit"] for s in second] == ["mend"]


def _mending() -> list[Any]:
    words = edit("shop/prices.py", "in percent.", "in percent, 0 to 100.")
    first = [rule for rule in story(LARGE, 5, coder_1=(words,)) if '"id":"u1"' in rule.match]
    return [rule.model_copy(update={"match": rule.match.replace('"id":"u1"', '"id":"mend"')}) for rule in first]


def test_no_role_of_the_small_tier_costs_more_than_before() -> None:
    from tasks.crew import crew

    assert len(crew(5, "small").members) == 8
    assert not crew(5, "small").own_words


def test_the_board_of_the_benchmark_is_the_one_of_this_test(tmp_path: Path) -> None:
    from benchmarks.crew import prepare

    prepare(tmp_path)
    assert sorted(p.stem for p in (tmp_path / "board").iterdir()) == sorted(TICKETS)
