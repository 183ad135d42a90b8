"""What a person sees of a running and of a finished ticket."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from deployments.screen import Screen, duration, look_commands, report_lines
from tasks.models import Evidence, Outcome, PullRequest, TestReport, Usage
from tasks.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(screen: Screen) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(screen)
    return capture.get()


def outcome(**changes: object) -> Outcome:
    report = TestReport(command="pytest", exit_code=0, tests={"a": "passed", "b": "passed"})
    evidence = Evidence(head_sha="1" * 40, diff="", files=("a.py",), lines_added=3, lines_removed=1, before=report, after=report, fixed=("t::new",))  # fmt: skip
    usage = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=50, calls=4, seconds=12, cost_usd=0.5)
    return Outcome(ticket="T-1", decision="ACCEPT", reasons=("It works.",), evidence=evidence, usage=usage, seconds=65).model_copy(update=changes)  # fmt: skip


def test_each_role_has_a_row_with_what_it_does_now() -> None:
    clock = Clock()
    screen = Screen("T-1", clock)
    screen.on_progress(Progress(ticket="T-1", phase="code", role="coder 1.1.1", tokens=80, tokens_per_second=17.5))
    clock.now = 75
    screen.on_progress(Progress(ticket="T-1", phase="test", role="tester 1.1.1", message="1 new test [red] fails"))
    text = drawn(screen)
    assert "T-1 · test · 1 min 15 s" in text
    coder, tester = (next(line for line in text.splitlines() if role in line) for role in ("coder", "tester"))
    assert coder.split() == ["code", "coder", "1.1.1", "writing,", "80", "tokens", "17.5", "1", "min", "15", "s"]
    assert "1 new test [red] fails" in tester


def test_a_finished_role_keeps_its_time_and_a_report_without_phase_keeps_the_phase() -> None:
    clock = Clock()
    screen = Screen("T-1", clock)
    screen.on_progress(Progress(ticket="T-1", phase="plan", role="planner"))
    clock.now = 5
    screen.on_progress(Progress(ticket="T-1", role="planner", message="answered", done=True))
    clock.now = 60
    row = next(line for line in drawn(screen).splitlines() if "planner" in line)
    assert row.split() == ["plan", "planner", "answered", "5", "s"]


def test_the_report_says_verdict_evidence_and_cost() -> None:
    lines = dict(report_lines(outcome()))
    assert (lines["verdict"], lines["because"]) == ("ACCEPT", "It works.")
    assert lines["change"] == "1 file(s), +3 -1"
    assert lines["tests after"] == "2 passed, 0 failed"
    assert lines["fixed"] == "1 test(s) fail before and pass after: t::new"
    assert lines["model"] == "4 calls, 1000 prompt tokens (60% cached), 50 written"
    assert lines["took"] == "1 min 05 s, of which model 12 s"
    assert lines["cost"] == "0.5000 USD"


def test_the_report_tells_how_to_look_at_the_branch_with_git(tmp_path: Path) -> None:
    assert look_commands(outcome(), "/repo") == []
    (tmp_path / "repo.git").mkdir()
    pull = PullRequest(branch="agent/T-1", title="t", body="b", base="main", head_sha="1" * 40, url=(tmp_path / "pulls" / "a.md").as_uri())  # fmt: skip
    look, take = look_commands(outcome(pull_request=pull), "/my repo")
    assert look == f"git --git-dir {tmp_path}/repo.git log -p main..agent/T-1"
    assert take == f"git -C '/my repo' fetch {tmp_path}/repo.git agent/T-1:agent/T-1"


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 185)] == ["0 s", "59 s", "1 min 00 s", "3 min 05 s"]
