"""The judge's rule as a truth table."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tasks.judging import Opinion, decide, distinct, objections
from tasks.models import Candidate, Evidence, Finding, TestChange, TestReport

REPORT = TestReport(command="t", exit_code=0)
GOOD: dict[str, Any] = {
    "head_sha": "c", "diff": "", "files": ("a.py",), "lines_added": 1, "lines_removed": 1,
    "before": REPORT, "after": REPORT, "fixed": ("t1",),
}  # fmt: skip
CANDIDATE = Candidate(number=1, head_sha="c", changes=())
BAD: list[dict[str, Any]] = [
    {"files": ()},
    {"fixed": ()},
    {"broken": ("t2",)},
    {"still_red": ("t2",)},
    {"violations": ("Protected path.",)},
    {"after": TestReport(command="t", exit_code=1, error="timed out")},
    {"findings": (Finding(source="bandit", severity="high", message="shell"),)},
]
OPINIONS = [
    None,
    Opinion(decision="ACCEPT", reasons=["Fine."]),
    Opinion(decision="REVISE", reasons=["No."], must_fix=["All of it."]),
    Opinion(decision="REJECT", reasons=["No."], must_fix=["All of it."]),
    Opinion(decision="REVISE", reasons=["A feeling."]),
]


@pytest.mark.parametrize("bad", BAD, ids=[next(iter(b)) for b in BAD])
def test_no_opinion_makes_failing_evidence_accept(bad: dict[str, Any]) -> None:
    for opinion, capable, last in product(OPINIONS, (True, False), (True, False)):
        verdict = decide(Evidence(**{**GOOD, **bad}), CANDIDATE, opinion, capable=capable, last_round=last)
        assert verdict.decision == ("REJECT" if last else "REVISE")
        assert verdict.decided_by == "evidence"
        assert verdict.reasons
        assert verdict.must_fix == verdict.reasons


def test_a_conflict_between_units_is_failing_evidence() -> None:
    torn = CANDIDATE.model_copy(update={"conflicts": ("a.py",)})
    verdict = decide(Evidence(**GOOD), torn, OPINIONS[1], capable=True, last_round=False)
    assert (verdict.decision, verdict.reasons) == ("REVISE", ("Units collide in a.py.",))


def test_the_opinion_of_a_small_model_changes_nothing_but_the_advice() -> None:
    verdicts = [
        decide(Evidence(**GOOD), CANDIDATE, o, capable=False, last_round=last)
        for o in OPINIONS
        for last in (True, False)
    ]
    assert {v.decision for v in verdicts} == {"ACCEPT"}
    assert len({v.model_copy(update={"advice": ""}) for v in verdicts}) == 1
    assert verdicts[0].advice == "no usable opinion"
    assert verdicts[4].advice == "REVISE: No."


@pytest.mark.parametrize(
    ("opinion", "last", "decision", "by"),
    [
        (OPINIONS[0], False, "ACCEPT", "evidence"),
        (OPINIONS[1], False, "ACCEPT", "evidence"),
        (OPINIONS[2], False, "REVISE", "model"),
        (OPINIONS[3], False, "REVISE", "model"),
        (OPINIONS[4], False, "ACCEPT", "evidence"),
        (OPINIONS[2], True, "ACCEPT", "evidence"),
        (OPINIONS[3], True, "ACCEPT", "evidence"),
    ],
)
def test_a_capable_model_may_ask_for_more_except_in_the_last_round(
    opinion: Opinion | None, last: bool, decision: str, by: str
) -> None:
    verdict = decide(Evidence(**GOOD), CANDIDATE, opinion, capable=True, last_round=last)
    assert (verdict.decision, verdict.decided_by) == (decision, by)
    assert verdict.must_fix == (("All of it.",) if decision == "REVISE" else ())


def test_findings_that_were_there_before_or_are_minor_do_not_refuse() -> None:
    old = Finding(source="bandit", severity="critical", message="old", new=False)
    small = Finding(source="ruff", severity="medium", message="style")
    evidence = Evidence(**{**GOOD, "findings": (old, small)})
    assert decide(evidence, CANDIDATE, None, capable=True, last_round=False).decision == "ACCEPT"


def test_a_red_example_of_the_ticket_is_named_as_such() -> None:
    tests = (TestChange(tester=0, red=("t2",)), TestChange(tester=1, red=("t3",)))
    said = objections(Evidence(**{**GOOD, "still_red": ("t2", "t3")}), CANDIDATE.model_copy(update={"tests": tests}))
    assert said == ("The ticket's own example still fails: t2", "A new test still fails: t3")


def test_what_two_roles_point_at_is_told_once_and_the_gravest_comes_first() -> None:
    def found(source: str, severity: Any, message: str) -> Finding:
        return Finding(source=source, severity=severity, message=message, path="a.py", line=3)

    told = distinct([found("reviewer", "low", "Off  by one."), found("auditor 1", "medium", "Open."), found("auditor 2", "high", "off by one.")])  # fmt: skip
    assert [(f.source, f.severity) for f in told] == [("auditor 2", "high"), ("auditor 1", "medium")]


EXEMPT: dict[str, Any] = {**GOOD, "fixed": (), "exemption": "docs", "files": ("README.md",)}


def test_an_exemption_stands_in_for_the_red_test_and_the_verdict_says_so() -> None:
    verdict = decide(Evidence(**EXEMPT), CANDIDATE, None, capable=True, last_round=False)
    assert verdict.decision == "ACCEPT"
    assert verdict.reasons == ("Only documents change, for which no test can be red; nothing that passed fails.",)


@pytest.mark.parametrize("bad", [b for b in BAD if "fixed" not in b], ids=lambda b: next(iter(b)))
@pytest.mark.parametrize("kind", ["docs", "tests"])
def test_an_exemption_stands_in_for_nothing_else(bad: dict[str, Any], kind: str) -> None:
    for opinion, last in product(OPINIONS, (True, False)):
        evidence = Evidence(**{**EXEMPT, "exemption": kind, **bad})
        verdict = decide(evidence, CANDIDATE, opinion, capable=True, last_round=last)
        assert verdict.decision == ("REJECT" if last else "REVISE")
