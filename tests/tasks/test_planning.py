"""Order and borders of work units, and what of a plan is looked up before anybody believes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.claims import Claim
from infra.errors import NeedsHuman
from infra.git import Mirror
from tasks import services
from tasks.asking import Asker
from tasks.models import Brief, Job, Plan, Policy, Repository, TestChange, TestReport, Ticket, Usage, WorkUnit
from tasks.planning import (
    NOT_ASKED,
    DraftPlan,
    DraftRejection,
    DraftUnit,
    _mistakes,
    _settled,
    disjoint,
    in_order,
    mending,
    mistakes,
    numbered,
    unproved,
)
from tests.shop import make_repository, write_ticket


def unit(name: str, *after: str) -> WorkUnit:
    return WorkUnit(id=name, title=name, depends_on=after)


def ordered(*units: WorkUnit) -> list[str]:
    return [u.id for u in in_order(units)]


def test_units_come_after_what_they_depend_on_and_otherwise_stay() -> None:
    assert ordered(unit("c", "b"), unit("b", "a"), unit("a"), unit("d")) == ["a", "b", "c", "d"]
    assert ordered(unit("b"), unit("a")) == ["b", "a"]


def test_unknown_dependencies_are_dropped() -> None:
    assert in_order((unit("a", "ghost"),)) == (unit("a"),)


@pytest.mark.parametrize(
    "units", [(unit("a", "a"),), (unit("a", "b"), unit("b", "a")), (unit("a", "c"), unit("b", "a"), unit("c", "b"))]
)
def test_circles_are_broken_and_no_unit_is_lost(units: tuple[WorkUnit, ...]) -> None:
    done = in_order(units)
    assert {u.id for u in done} == {u.id for u in units}
    for place, one in enumerate(done):
        assert set(one.depends_on) <= {u.id for u in done[:place]}


def test_two_units_with_one_id_are_both_done() -> None:
    units = (WorkUnit(id="u1", title="first"), WorkUnit(id="u1", title="second"))
    assert {u.title for u in in_order(units)} == {"first", "second"}


def draft(name: str, files: list[str], *after: str) -> DraftUnit:
    return DraftUnit(id=name, title=name, files=files, depends_on=list(after), description=f"Do {name}.")


def test_units_that_share_a_file_are_one_unit_and_keep_their_order_and_dependencies() -> None:
    """Files are locks: two coders never write the same one."""
    units = numbered([draft("a", ["x"]), draft("b", ["y"], "a"), draft("c", ["z", "x"]), draft("d", ["w"], "c", "c")])
    made = disjoint(units)
    assert [(u.id, u.files, u.depends_on) for u in made] == [
        ("u1", ("x", "z"), ()), ("u2", ("y",), ("u1",)), ("u4", ("w",), ("u1",)),
    ]  # fmt: skip
    assert (made[0].title, made[0].description) == ("a and c", "Do a.\nDo c.")


def test_a_unit_that_touches_two_groups_joins_them() -> None:
    made = disjoint(numbered([draft("a", ["x"]), draft("b", ["y"]), draft("c", ["x", "y"])]))
    assert [(u.id, u.files) for u in made] == [("u1", ("x", "y"))]


def test_units_without_files_stay_apart_and_ids_are_safe_as_names_of_folders() -> None:
    made = disjoint(numbered([draft("../../etc", []), draft("../../etc", []), draft("x y", [], "../../etc")]))
    assert [(u.id, u.depends_on) for u in made] == [("u1", ()), ("u2", ()), ("u3", ("u1",))]


def test_a_later_round_is_one_unit_with_all_files() -> None:
    plan = Plan(
        summary="s",
        effort=5,
        units=(WorkUnit(id="u1", title="a", files=("x",)), WorkUnit(id="u2", title="b", files=("y",))),
    )
    assert [(u.id, u.files) for u in mending(plan)] == [("mend", ("x", "y"))]
    alone = plan.model_copy(update={"units": plan.units[:1]})
    assert mending(alone) == alone.units


@pytest.fixture
def brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brief:
    """The shop in a real mirror, and a board with one more ticket."""
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    services.close()
    mirror = Mirror.open(tmp_path / "repos", "shop", str(make_repository(tmp_path / "shop")))
    branch, sha = mirror.base(None)
    write_ticket(tmp_path / "home" / "board", "other-1")
    return Brief(
        ticket=Ticket(key="shop-1", title="t", body="b", state="ready"), policy=Policy(),
        repository=Repository(name="shop", mirror=str(mirror.path), remote="", base_branch=branch, base_sha=sha),
        baseline=TestReport(command="", exit_code=0),
    )  # fmt: skip


def planned(**more: Any) -> DraftPlan:
    return DraftPlan.model_validate({"summary": "s", "units": [{"id": "a", "title": "t"}], **more})


@pytest.mark.parametrize(
    ("named", "mistakes_of"),
    [
        ({"units": [{"id": "a", "title": "t", "files": ["shop/prices.py"], "symbols": ["shop/prices.py::total(prices)"]}]}, 0),
        ({"units": [{"id": "a", "title": "t", "files": ["shop/nope.py"], "symbols": ["totall"]}]}, 2),
        ({"units": [{"id": "a", "title": "t", "files": ["shop/new.py"], "symbols": ["Basket.add"]}], "creates": ["shop/new.py", "add()"]}, 0),
        ({"units": [{"id": "a", "title": "t", "files": ["../x.py"]}], "creates": ["../x.py", "/etc/x"]}, 1),
        ({"file_layout": ["shop/prices.py: total", "`shop/nope.py` - new", "everything else stays"]}, 1),
        ({"file_layout": ["shop/", "tests/"]}, 0),
    ],
)  # fmt: skip
def test_every_file_and_symbol_of_a_plan_is_there_or_will_be(
    brief: Brief, named: dict[str, Any], mistakes_of: int
) -> None:
    assert len(mistakes(brief, planned(**named))) == mistakes_of


def rejected(kind: str = "already_done", ticket: str = "", **proof: Any) -> DraftRejection:
    return DraftRejection.model_validate(
        {"kind": kind, "reason": "r", "ticket": ticket, "proofs": [proof] if proof else []}
    )


LINE = {"path": "shop/prices.py", "line": 6, "quote": "return  sum(prices)"}


@pytest.mark.parametrize(
    "proof",
    [
        {},
        {"path": "shop/prices.py", "line": 6},
        {**LINE, "quote": "sum"},
        {**LINE, "quote": "return sum(prices) * 2"},
        {**LINE, "line": 40},
        {**LINE, "line": -1},
        {**LINE, "path": "shop/nope.py"},
        {**LINE, "path": "../../etc/passwd", "quote": "root:x:0:0:root:/root"},
        {**LINE, "commit": "0" * 40},
        {**LINE, "commit": "HEAD"},
        {**LINE, "commit": "--output=x"},
        {"commit": "given"},
    ],
)
def test_a_rejection_without_words_that_stand_there_is_refused(brief: Brief, proof: dict[str, Any]) -> None:
    """T14: what cannot be looked up is not believed."""
    proof = {**proof, **({"commit": brief.repository.base_sha} if proof.get("commit") == "given" else {})}
    assert unproved(brief, rejected(**proof))


@pytest.mark.parametrize("line", [6, 8, 0])
def test_a_rejection_with_a_line_that_stands_there_is_believed(brief: Brief, line: int) -> None:
    assert unproved(brief, rejected(**{**LINE, "line": line, "commit": brief.repository.base_sha[:10]})) == []


def test_a_ticket_whose_own_example_fails_is_not_done_whatever_is_quoted(brief: Brief) -> None:
    red = brief.model_copy(update={"ticket_tests": TestChange(tester=0, red=("t",))})
    assert "There is work to do" in unproved(red, rejected(**LINE))[0]


@pytest.mark.parametrize(("key", "believed"), [("other-1", True), ("shop-1", False), ("ghost-1", False), ("", False)])
def test_only_another_open_ticket_of_the_board_can_come_first(brief: Brief, key: str, believed: bool) -> None:
    assert (unproved(brief, rejected("blocked_by", key)) == []) is believed


def test_a_plan_without_units_and_without_a_reason_is_no_plan() -> None:
    with pytest.raises(ValidationError):
        DraftPlan.model_validate({"summary": "s"})


ASKING = {"summary": "s", "question": " Cents or euros? "}


def planning_job(brief: Brief, continuations: int) -> Job:
    claim = Claim.model_construct(continuations=continuations)
    return Job.model_construct(ticket=brief.ticket, repository=brief.repository, claim=claim)


async def mistakes_of(brief: Brief, answer: dict[str, Any], continuations: int = 0) -> list[str]:
    asker = Asker(ticket="shop-1", attempt_id=1, thought="", role="architect", prompt_version="")
    return await _mistakes(planning_job(brief, continuations), brief, asker, DraftPlan.model_validate(answer))


async def test_an_architect_asks_people_what_only_they_can_say(brief: Brief) -> None:
    """RC7, I12."""
    with pytest.raises(NeedsHuman) as raised:
        await mistakes_of(brief, ASKING)
    assert raised.value.question == "Cents or euros?"
    assert await mistakes_of(brief, {**ASKING, "units": [{"id": "a", "title": "t"}]}) == [], "what can be planned is"


async def test_an_architect_that_asked_often_enough_plans_the_usual_reading(brief: Brief) -> None:
    """SM8: a question is a mistake then, and one that stays is replaced by the ticket itself."""
    assert await mistakes_of(brief, ASKING, continuations=5) == [NOT_ASKED]
    settled = _settled(planning_job(brief, 5), brief, DraftPlan.model_validate(ASKING), [NOT_ASKED], Usage())
    assert [unit.title for unit in settled.units] == ["t"]


async def test_an_architect_sends_nobody_to_change_a_setting_that_nothing_shows(
    brief: Brief, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T14: the question is vetted as the coder's are."""

    async def unpublished(*_: object) -> None:
        return None

    monkeypatch.setattr("tasks.paper.leave", unpublished)
    question = "You must set the environment variable SHOP_DISCOUNT in production."
    (why,) = await mistakes_of(brief, {**ASKING, "question": question})
    assert "Name the lines of the repository that show it" in why
