"""A repository's hooks, run for real in the sandbox."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest

from infra.errors import WorkFailed
from infra.sandbox import Bubblewrap, Limits
from tasks.hooks import SHOWN_CHARS, run_hook
from tasks.models import Hooks, Policy

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

BOX = Bubblewrap(Limits(timeout_seconds=20))


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    return path


def policy(**hooks: str | float) -> Policy:
    return Policy(hooks=Hooks.model_validate(hooks))


async def test_a_hook_runs_in_the_checkout_without_network_and_secrets(
    worktree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS4, WS7."""
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_abcdefghijklmnopqrstuvwxyz0123")
    command = (
        'test -z "$GITHUB_TOKEN" && test "$(ls /sys/class/net 2>/dev/null | grep -v lo | wc -l)" = 0 && pwd > where'
    )
    assert await run_hook("before_run", policy(before_run=command), worktree, BOX) is None
    assert (worktree / "where").read_text() == "/workspace\n"


async def test_a_hook_that_is_not_set_runs_nothing(worktree: Path) -> None:
    assert await run_hook("after_run", policy(before_run="touch ran"), worktree, BOX) is None
    assert list(worktree.iterdir()) == []


async def test_a_checkout_that_cannot_be_prepared_fails_the_run(worktree: Path) -> None:
    """WS4."""
    with pytest.raises(WorkFailed, match=r"'after_create' ended with exit code 3: 'no tools'; correct `hooks`"):
        await run_hook("after_create", policy(after_create="echo no tools; exit 3"), worktree, BOX)


@pytest.mark.parametrize("name", ["before_run", "after_run", "before_remove"])
async def test_later_failures_are_logged_and_ignored(
    worktree: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """WS4."""
    problem = await run_hook(name, policy(**{name: "echo bad luck >&2; false"}), worktree, BOX)  # type: ignore[arg-type]
    assert problem == f"the hook {name!r} ended with exit code 1: 'bad luck'"
    assert problem in caplog.text


async def test_a_hook_that_hangs_is_ended_in_time(worktree: Path) -> None:
    """WS4."""
    began = time.monotonic()
    problem = await run_hook("after_run", policy(after_run="sleep 60", timeout_seconds=0.5), worktree, BOX)
    assert problem is not None
    assert "did not end within 0.5 s" in problem
    assert time.monotonic() - began < 10


def test_a_hook_has_60_seconds() -> None:
    """WS4."""
    assert Policy().hooks.timeout_seconds == 60


async def test_output_is_cut_and_on_one_line_in_logs(worktree: Path, caplog: pytest.LogCaptureFixture) -> None:
    """WS4."""
    caplog.set_level(logging.INFO)
    await run_hook("after_run", policy(after_run="seq 100000; echo the end; exit 1"), worktree, BOX)
    (record,) = caplog.records
    assert "the end" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 2 * SHOWN_CHARS
