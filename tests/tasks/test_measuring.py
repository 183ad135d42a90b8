"""Which of several candidates is the best, by evidence alone."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.measuring import as_markdown, rank
from tasks.models import Candidate, Evidence, TestReport

REPORT = TestReport(command="t", exit_code=0)
CANDIDATE = Candidate(number=1, head_sha="c", changes=())


def evidence(**values: Any) -> Evidence:
    known: dict[str, Any] = {
        "head_sha": "c", "diff": "", "files": ("a.py",), "lines_added": 1, "lines_removed": 1,
        "before": REPORT, "after": REPORT, "fixed": ("t1",),
    }  # fmt: skip
    return Evidence(**{**known, **values})


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"violations": ("too large",)}),
        ({}, {"fixed": ()}),
        ({}, {"broken": ("t2",), "fixed": ("t1", "t3", "t4")}),
        ({"broken": ("t2",)}, {"broken": ("t2", "t3")}),
        ({"fixed": ("t1", "t2")}, {}),
        ({}, {"still_red": ("t2",)}),
        ({}, {"lines_added": 2}),
    ],
)
def test_the_better_evidence_ranks_higher(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert rank(CANDIDATE, evidence(**better)) > rank(CANDIDATE, evidence(**worse))


def test_a_conflict_is_an_objection() -> None:
    torn = CANDIDATE.model_copy(update={"conflicts": ("a.py",)})
    assert rank(CANDIDATE, evidence()) > rank(torn, evidence(fixed=("t1", "t2")))


def test_a_candidate_the_judge_accepts_beats_one_it_refuses() -> None:
    """`judging.objections` refuses a red test; more fixed tests do not make up for it."""
    refused = evidence(fixed=("t1", "t2", "t3"), still_red=("t4",))
    assert rank(CANDIDATE, evidence()) > rank(CANDIDATE, refused)


def test_the_page_names_what_turned_green_and_what_is_against_it() -> None:
    assert "- `t1`" in as_markdown(evidence())
    assert "- nothing forbids ACCEPT" in as_markdown(evidence())
    assert "- too large" in as_markdown(evidence(violations=("too large",)))
