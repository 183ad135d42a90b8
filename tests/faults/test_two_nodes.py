"""The script `two_nodes`, small: the test that a node which dies, or comes back late, costs no ticket and doubles none."""

from __future__ import annotations

import pytest

from tests.faults.two_nodes import Row, Wanted, go, report


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("fault", "again"), [("kill", 2), ("freeze", 0)])
def test_tickets_of_a_node_that_dies_end_on_the_other_one_exactly_once(fault: str, again: int) -> None:
    """I10, SM11, RC8."""
    seen = go(Wanted(tickets=2, seed=1, fault=fault, slots=2, again=again, slow_seconds=2))
    assert not seen.mistakes, report(seen)
    assert seen.hit


@pytest.mark.slow
def test_a_ticket_with_two_pull_requests_or_two_ends_is_a_mistake() -> None:
    right = Row("t-1", ["b", "a"], ["crashed", "completed"], ["a"], 1, 1, 1, 1, "in review")
    assert right.mistakes == []
    for wrong in (
        {"completed_on": ["b", "a"]}, {"branches": 2}, {"pushes": 3}, {"pushes": 0}, {"pull_requests": 2},
        {"announced": 2}, {"state": "in progress"},
    ):  # fmt: skip
        assert right._replace(**wrong).mistakes
