"""Streams that the real programs printed (see `recordings`), played by a script in the sandbox: what is made of them."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from infra.agents import Activity, Report, Session
from infra.llm import Usage
from infra.sandbox import Limits, Unsandboxed
from tasks.failures import Ending, classify
from tests.infra.agents.programs import BOX, RECORDINGS, agent_of, player

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

CODES = {"ok": 0, "hang": 0, "turns": 1}
MINI_CODES = {"ok": 0, "hang": 0, "turns": 0}


async def played(
    folder: Path, kind: str, which: str, *, ending: str | None = None, max_seconds: float = 30
) -> tuple[Report, list[Activity]]:
    worktree = folder / "worktree"
    worktree.mkdir()
    codes = MINI_CODES if kind.startswith("mini") else CODES
    program = player(folder, kind, which, ending or f"exit {codes.get(which, 1)}")
    activities: list[Activity] = []
    session = Session(prompt="Change old to new.", max_seconds=max_seconds)
    report = await agent_of(folder, kind, program).run(
        session, worktree=worktree, sandbox=BOX, on_activity=activities.append
    )
    return report, activities


@pytest.mark.parametrize("kind", ["claude-code", "codex", "opencode", "mini-swe-agent"])
async def test_a_session_that_ended_well_is_told_whole(kind: str, tmp_path: Path) -> None:
    """OB3: two calls of 1200 tokens are 2400, wherever and however cumulatively the program says so."""
    report, activities = await played(tmp_path, kind, "ok")
    assert report.finished
    assert report.usage.model_copy(update={"seconds": 0}) == Usage(
        prompt_tokens=2400, cached_tokens=400, completion_tokens=60, calls=2
    )
    assert sum((a.usage for a in activities), Usage()).prompt_tokens == 2400
    assert report.tool_calls == (2 if kind == "mini-swe-agent" else 1)
    assert report.said
    assert activities[0].kind == "started"
    assert (report.exit_code, report.ran_out) == (0, None)


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*-ok.jsonl")), ids=lambda path: path.stem)
def test_recordings_name_nothing_of_the_machine_they_were_made_on(path: Path) -> None:
    for recording in RECORDINGS.iterdir():
        assert "/tmp/" not in recording.read_text()
        assert "/root" not in recording.read_text()


@pytest.mark.parametrize(
    ("kind", "which", "fault"),
    [
        ("claude-code", "401", "auth"),
        ("claude-code", "429", "limit"),
        ("claude-code", "quota", "money"),
        ("claude-code", "money", "money"),
        ("claude-code", "turns", "ticket"),
        ("codex", "401", "auth"),
        ("codex", "429", "limit"),
        ("codex", "quota", "money"),
        ("opencode", "401", "auth"),
        ("opencode", "429", "limit"),
        ("mini-swe-agent", "401", "auth"),
        ("mini-swe-agent", "429", "limit"),
        ("mini-swe-agent", "quota", "money"),
        ("mini-swe-agent", "turns", "ticket"),
    ],
)
async def test_a_session_that_failed_says_whose_fault_it_was(kind: str, which: str, fault: str, tmp_path: Path) -> None:
    """RB8: limits, refused keys and used-up money burn no attempt; a bound of our own does."""
    report, _ = await played(tmp_path, kind, which)
    assert not report.finished
    ending = Ending(
        exit_code=report.exit_code, seconds=60, text=report.output[-2000:], events=report.events, provider=kind
    )
    found = classify(ending, datetime.now(UTC))
    assert (found.kind, found.burns) == (fault, fault == "ticket"), found.reason


@pytest.mark.parametrize("kind", ["claude-code", "codex", "mini-swe-agent"])
@pytest.mark.slow
async def test_a_killed_session_still_counts_what_it_used(kind: str, tmp_path: Path) -> None:
    """The stream has no totals then; the session's file has the answers."""
    report, _ = await played(tmp_path, kind, "hang", ending="exec sleep 60", max_seconds=2)
    assert (report.finished, report.ran_out) == (False, "time")
    assert report.usage.model_copy(update={"seconds": 0}) == Usage(
        prompt_tokens=1200, cached_tokens=200, completion_tokens=30, calls=1
    )


@pytest.mark.parametrize(("kind", "limit"), [("codex", "turns"), ("opencode", "turns")])
async def test_an_agent_without_a_limit_of_turns_is_ended_by_ours(
    kind: str, limit: Literal["turns"], tmp_path: Path
) -> None:
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    program = player(tmp_path, kind, "turns", "exec sleep 60")
    session = Session(prompt="p", max_seconds=30, max_turns=5)
    report = await agent_of(tmp_path, kind, program).run(session, worktree=worktree, sandbox=BOX)
    assert (report.finished, report.ran_out) == (False, limit)
    assert report.seconds < 20


async def test_without_a_sandbox_it_works_all_the_same(tmp_path: Path) -> None:
    """`sandbox: none`: the state folder and the user's login are where the program looks for them."""
    (tmp_path / "worktree").mkdir()
    (tmp_path / "auth.json").write_text("{}")
    program = player(tmp_path, "codex", "ok", 'test -f "$CODEX_HOME/auth.json" && touch logged-in')
    agent = agent_of(tmp_path, "codex", program, url=None, login=tmp_path)
    report = await agent.run(
        Session(prompt="p", max_seconds=30), worktree=tmp_path / "worktree", sandbox=Unsandboxed(Limits())
    )
    assert report.finished
    assert report.usage.prompt_tokens == 2400
    assert (tmp_path / "worktree/logged-in").exists()


@pytest.mark.parametrize("kind", ["claude-code", "codex", "opencode"])
async def test_exit_code_0_alone_is_no_good_end(kind: str, tmp_path: Path) -> None:
    report, _ = await played(tmp_path, kind, "401", ending="exit 0")
    assert (report.exit_code, report.finished) == (0, False)


async def test_the_price_is_the_sections(tmp_path: Path) -> None:
    (tmp_path / "worktree").mkdir()
    agent = agent_of(
        tmp_path,
        "codex",
        player(tmp_path, "codex", "ok"),
        url="https://models.invalid/v1",
        usd_per_million_tokens=(10, 1, 100),
    )
    report = await agent.run(Session(prompt="p", max_seconds=30), worktree=tmp_path / "worktree", sandbox=BOX)
    assert report.usage.cost_usd == pytest.approx((2000 * 10 + 400 * 1 + 60 * 100) / 1e6)
