"""The demonstration of self-repair: its scratch factory has the bugs it says, and all three stories end as they should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.repair import FILES, ORDER, STORIES, Told, table


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.outcome)
def test_each_order_of_a_story_raises_and_the_usual_one_does_not(tmp_path: Path, story: object) -> None:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    code = "import sys, ast; from works.desk import work_off; print(work_off(ast.literal_eval(sys.argv[1])))"
    ended = [
        subprocess.run([sys.executable, "-c", code, repr(order)], cwd=tmp_path, capture_output=True).returncode
        for order in (ORDER, story.order)  # type: ignore[attr-defined]
    ]
    assert ended == [0, 1]


def test_a_story_that_ends_otherwise_says_what_was_expected() -> None:
    told = Told(
        name="n", expected="kept", outcome="failed", reason="no change", steps=(("found", "", "", "3 time(s)"),)
    )
    assert not told.as_expected
    assert "failed: no change (expected: kept)" in table(told)
    assert "| found |  |  | 3 time(s) |" in table(told)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_three_stories_end_as_they_should() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKFACTORY_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.repair"], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answers written down" in done.stdout
