"""How many of each role an effort gets (T10)."""

from __future__ import annotations

import pytest

from tasks.crew import Crew, crew


@pytest.mark.parametrize(
    ("effort", "size", "roles"),
    [(-1, (1, 1, 0, 0), 6), (1, (1, 1, 0, 0), 6), (2, (1, 1, 1, 1), 8), (3, (2, 2, 1, 1), 10), (4, (3, 2, 2, 1), 12),
     (5, (3, 3, 2, 1), 13), (99, (3, 3, 2, 1), 13)],
)  # fmt: skip
def test_the_crew_grows_with_the_effort_to_thirteen(effort: int, size: tuple[int, int, int, int], roles: int) -> None:
    found = crew(effort, "capable")
    assert (found.coders, found.testers, found.auditors, found.reviewers) == size
    assert len(found.members) == len(set(found.members)) == roles


@pytest.mark.parametrize("effort", [1, 5])
def test_the_crew_of_a_small_model_never_grows(effort: int) -> None:
    assert crew(effort, "small") == Crew()


def test_the_auditors_look_twice_and_the_scribe_asks_only_where_it_is_worth_it() -> None:
    assert [crew(effort, "capable").second_look for effort in range(1, 6)] == [False, False, False, True, True]
    assert [crew(effort, "capable").own_words for effort in range(1, 6)] == [False, True, True, True, True]
