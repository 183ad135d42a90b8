"""Order of work units and size of the crew."""

from __future__ import annotations

import pytest

from tasks.models import WorkUnit
from tasks.planning import crew, in_order


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


@pytest.mark.parametrize(("effort", "size"), [(-1, (1, 1, 1)), (1, (1, 1, 1)), (2, (1, 1, 1)), (3, (2, 2, 1)), (4, (3, 2, 2)), (5, (3, 3, 2)), (99, (3, 3, 2))])  # fmt: skip
def test_the_crew_grows_with_the_effort_but_never_for_a_small_model(effort: int, size: tuple[int, int, int]) -> None:
    assert crew(effort, "capable") == size
    assert crew(effort, "small") == (1, 1, 1)
