"""The demo's material: a real repository with a real bug that its own tests do not catch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.demonstration import Demo, prepare_demo


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_demo_is_the_same_commit_wherever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_demo(tmp_path / "one")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    second = prepare_demo(tmp_path / "two")
    assert git(first.repository, "rev-parse", "HEAD") == git(second.repository, "rev-parse", "HEAD")
    assert git(first.repository, "status", "--porcelain") == ""


def test_preparing_again_changes_nothing_and_fresh_makes_the_next(tmp_path: Path) -> None:
    first = prepare_demo(tmp_path)
    ticket = first.board / f"{first.ticket}.md"
    ticket.write_text(ticket.read_text().replace("state: ready", "state: in review"))
    assert prepare_demo(tmp_path) == first
    assert "state: in review" in ticket.read_text()
    fresh = prepare_demo(tmp_path, fresh=True)
    assert fresh == Demo(board=first.board, repository=tmp_path / "demo" / "roombook-2", ticket="demo-2")
    assert f"repository: {fresh.repository}" in (fresh.board / "demo-2.md").read_text()
    assert prepare_demo(tmp_path) == fresh


def test_a_demo_that_was_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    half = tmp_path / "demo" / ".roombook-1.1"
    half.mkdir(parents=True)
    demo = prepare_demo(tmp_path)
    assert git(demo.repository, "rev-list", "--count", "HEAD") == "1"


def test_the_bug_is_real_and_the_repositorys_own_tests_miss_it(tmp_path: Path) -> None:
    demo = prepare_demo(tmp_path)
    own = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=demo.repository, check=False
    )
    assert own.returncode == 0
    ticket = (demo.board / f"{demo.ticket}.md").read_text()
    example = ticket.split("```python\n")[1].split("```")[0]
    typed = subprocess.run(
        [sys.executable, "-c", example], cwd=demo.repository, capture_output=True, text=True, check=True
    )
    assert f"Got: `{typed.stdout.strip()}`" in ticket
    assert f"Expected: `{typed.stdout.strip()}`" not in ticket
