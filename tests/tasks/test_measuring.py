"""Which of several candidates is the best, by evidence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.git import Mirror
from tasks.measuring import anchored, as_markdown, asked_exemption, evidence_at_hand, facts, rank, shown_lines
from tasks.models import (
    Brief,
    Candidate,
    Evidence,
    Finding,
    Greenfield,
    Job,
    Policy,
    Repository,
    TestChange,
    TestReport,
    Ticket,
)
from tests.shop import git, make_repository

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


@pytest.fixture
def diff(tmp_path: Path) -> str:
    """A real patch: an edit in the middle, a new file, a deleted one, a renamed one, a name with a space, and lines that
    look like heads of a patch."""
    before = "".join(f"line {n}\n" for n in range(1, 41))
    place = make_repository(tmp_path / "r", {"a.py": before, "gone.py": "x\ny\n", "old.py": before, "b c.py": "1\n"})
    (place / "a.py").write_text(before.replace("line 20\n", "++ b/evil.py\n@@ -1 +900 @@\n"))
    (place / "new.py").write_text("-- a/x\nno newline")
    (place / "gone.py").unlink()
    (place / "b c.py").write_text("2\n")
    git(place, "mv", "old.py", "moved.py")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "change")
    mirror = Mirror.open(tmp_path / "repos", "r", str(place))
    return mirror.diff(*git(place, "rev-parse", "HEAD~1", "HEAD").split())


def test_the_lines_of_a_patch_are_those_of_its_hunks(diff: str) -> None:
    assert {path: (lines.start, lines.stop) for path, lines in shown_lines(diff)} == {
        "a.py": (17, 25), "new.py": (1, 3), "gone.py": (1, 3), "b c.py": (1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "line", "severity"),
    [("a.py", 20, "high"), ("a.py", 1, "low"), ("a.py", 0, "low"), ("a.py", 900, "low"), ("evil.py", 900, "low"),
     ("new.py", 2, "high"), ("gone.py", 2, "high"), ("moved.py", 1, "low"), ("", 1, "low")],
)  # fmt: skip
def test_a_finding_outside_the_diff_loses_its_severity(diff: str, path: str, line: int, severity: str) -> None:
    finding = Finding(source="reviewer", severity="high", message="m", path=path, line=line)
    assert anchored(finding, evidence(diff=diff)).severity == severity


@pytest.mark.parametrize(
    ("said", "failing", "red", "at_hand"),
    [
        ("t.py::test_a fails", "t.py::test_a", (), True),
        ("something fails", "t.py::test_a", (), False),
        ("something fails", None, ("t1",), True),
        ("something fails", None, (), False),
    ],
)
def test_evidence_is_at_hand_where_the_ticket_brings_or_names_a_red_test(
    said: str, failing: str | None, red: tuple[str, ...], at_hand: bool
) -> None:
    brief = Brief(
        ticket=Ticket(key="T-1", title="t", body=said, state="ready"), policy=Policy(),
        repository=Repository(name="r", mirror="", remote="", base_branch="main", base_sha="a"),
        baseline=TestReport(command="", exit_code=1, tests={failing: "failed"} if failing else {}),
        ticket_tests=TestChange(tester=0, red=red),
    )  # fmt: skip
    assert evidence_at_hand(brief) is at_hand


@pytest.mark.parametrize(
    ("title", "greenfield", "asked"),
    [
        ("Document the prices", None, "docs"),
        ("Add tests for total", None, "tests"),
        ("total is wrong", None, None),
        ("Refactor total", None, None),
        ("Document store for recipes", Greenfield(), None),
    ],
)
def test_only_tickets_for_documents_or_tests_ask_for_an_exemption(
    title: str, greenfield: Greenfield | None, asked: str | None
) -> None:
    job = Job.model_construct(ticket=Ticket(key="T-1", title=title, body="", state="ready"), greenfield=greenfield)
    assert asked_exemption(job) == asked


def test_the_page_and_the_prompts_say_what_stands_in_for_the_red_test() -> None:
    found = evidence(fixed=(), exemption="tests", able_to_fail=("t9",))
    assert "- none. Only tests are added; a small edit of the code turns t9 red." in as_markdown(found)
    assert "a small edit of the code turns t9 red" in facts(found)


def test_what_an_exemption_lacks_stands_beside_the_rule() -> None:
    said = evidence(fixed=(), shortfall="No test is new.").failures
    assert said == ("No test fails before the change and passes after it. No test is new.",)
