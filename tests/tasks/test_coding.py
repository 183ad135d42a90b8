"""A small model's answer spliced into the files it was shown, and when a trial run is green."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.git import Mirror
from infra.sandbox import Limits, Unsandboxed
from tasks.coding import apply_answer, edited_files, explanation, in_waves, trial_passes
from tasks.models import Brief, Policy, Repository, TestChange, TestReport, Ticket, WorkUnit
from tests.shop import make_repository

FILES = {"a.py": "def f(x):\n    return x\n", "b.py": "def g(x):\n    return x\n\n\ndef h(x):\n    return x\n"}


def block(code: str) -> str:
    return f"The bug is here.\n```python\n{code}\n```"


def test_two_blocks_change_two_files() -> None:
    answer = block("def f(x):\n    return 1") + "\nand\n" + block("def h(x):\n    return 2")
    ending, files = apply_answer(answer, FILES)
    assert ending == "done"
    assert files == {
        "a.py": "def f(x):\n    return 1\n",
        "b.py": FILES["b.py"].replace("def h(x):\n    return x", "def h(x):\n    return 2"),
    }


def test_two_blocks_of_one_file_are_both_applied() -> None:
    ending, files = apply_answer(block("def g(x):\n    return 1") + block("def h(x):\n    return 2"), FILES)
    assert (ending, files) == ("done", {"b.py": "def g(x):\n    return 1\n\n\ndef h(x):\n    return 2\n"})


def test_an_unclosed_block_counts() -> None:
    assert apply_answer("x\n```python\ndef f(x):\n    return 1\n", FILES)[0] == "done"


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (block("def f(x):\n    return x"), "unchanged"),
        (block("def f(x):\n    # better\n    return x"), "unchanged"),
        (block("def other(x):\n    return x"), "invalid"),
        (block("def f(x:\n    return 1"), "invalid"),
        ("def f(x):\n    return 1", "invalid"),
        ("", "invalid"),
    ],
)
def test_an_answer_that_changes_nothing_is_told_from_one_that_cannot_be_used(answer: str, ending: str) -> None:
    assert apply_answer(answer, FILES) == (ending, {})


def test_the_explanation_is_what_stands_before_the_code() -> None:
    assert explanation("The bug\nis  here.\n```python\nx\n```\nafter") == "The bug is here."
    assert len(explanation("x " * 1_000)) <= 400


def report(**tests: str) -> TestReport:
    return TestReport.model_validate({"command": "t", "exit_code": 0, "tests": tests})


def brief(baseline: TestReport) -> Brief:
    repository = Repository(name="r", mirror="", remote="", base_branch="main", base_sha="a")
    return Brief(ticket=Ticket(key="T", title="", body="", state=""), repository=repository, policy=Policy(), baseline=baseline)  # fmt: skip


@pytest.mark.parametrize(
    ("after", "green"),
    [
        ({"old": "passed", "new": "passed"}, True),
        ({"old": "passed", "new": "failed"}, False),
        ({"old": "failed", "new": "passed"}, False),
        ({"old": "skipped", "new": "passed"}, False),
        ({"new": "passed"}, False),
        ({}, False),
    ],
)
def test_a_trial_is_green_when_nothing_broke_and_every_red_test_passes(after: dict[str, str], green: bool) -> None:
    red = (TestChange(tester=1, red=("new",)),)
    assert trial_passes(brief(report(old="passed")), report(**after), red) is green


def test_without_new_tests_a_failing_test_of_the_repository_has_to_turn_green() -> None:
    base = brief(report(old="passed", bug="failed"))
    assert trial_passes(base, report(old="passed", bug="passed"), ())
    assert not trial_passes(base, report(old="passed", bug="failed"), ())
    assert not trial_passes(base, report(old="passed", bug="passed").model_copy(update={"error": "flooded"}), ())


def test_units_that_wait_for_nothing_go_together_and_circles_end() -> None:
    a, b, c = WorkUnit(id="a", title=""), WorkUnit(id="b", title=""), WorkUnit(id="c", title="", depends_on=("a",))
    assert in_waves((a, b, c)) == [(a, b), (c,)]
    x, y = WorkUnit(id="x", title="", depends_on=("y",)), WorkUnit(id="y", title="", depends_on=("x",))
    assert in_waves((x, y)) == [(x, y)]


async def test_a_coder_hands_out_its_edits_and_what_it_built_on_but_nothing_that_hooks_made(tmp_path: Path) -> None:
    """WS4."""
    files = {"a.py": "a = 1\n", "b.py": "b = 1\n", "gone.py": "", "made.py": "old\n"}
    mirror = Mirror.open(tmp_path / "m", "shop", str(make_repository(tmp_path / "shop", files)))
    base, box = mirror.base(None)[1], Unsandboxed(Limits())
    laid = {"given.py": "g = 1\n", "tests/test_new.py": "t = 1\n"}
    with mirror.worktree(tmp_path / "trees", "T-1", "c", base) as worktree:
        for path, text in {**laid, "made.py": "new\n", "made/more.txt": "x\n"}.items():
            worktree.write(path, text)
        start = await worktree.commit(box, "before the agent")
        worktree.write("a.py", "a = 2\n")
        worktree.write("made/more.txt", "y\n")
        worktree.delete("gone.py")
        head = await worktree.commit(box, "after it")
    assert edited_files(mirror, start, head, laid) == {
        "a.py": "a = 2\n", "gone.py": None, "made/more.txt": "y\n", "given.py": "g = 1\n",
    }  # fmt: skip
    assert set(edited_files(mirror, base, head, laid)) == {"a.py", "gone.py", "made.py", "made/more.txt", "given.py"}
    kept = edited_files(mirror, start, head, laid, {"tests/test_new.py"})
    assert kept["tests/test_new.py"] == "t = 1\n", "a coder's own new test of an earlier round"
