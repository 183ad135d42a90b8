"""The real programs, pointed at an endpoint whose answers are written down. Skipped where they are not installed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.agents import Session
from infra.agents.program import NO_KEY, ProgramAgent
from infra.errors import AuthFailed
from infra.llm import Usage
from tasks.failures import Ending, classify
from tests.fakes.models import AgentEndpoint, Hang, Refuse, Run, Say, Turn
from tests.infra.agents.programs import BOX, agent_of, installed

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

KINDS = ["claude-code", "codex", "opencode", "mini-swe-agent"]
KEY = "sk-the-users-real-key-0123456789"
EDIT = Run(command="sed -i s/old/new/ file.txt")
SUBMIT = Run(command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
FORBIDDEN = Refuse(status=401, body={"error": {"type": "authentication_error", "message": "invalid x-api-key"}})


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    (path / "file.txt").write_text("old\n")
    return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    installed(request.param)
    return str(request.param)


def real(folder: Path, kind: str, endpoint: AgentEndpoint, **section: object) -> ProgramAgent:
    url = endpoint.url if kind == "claude-code" else f"{endpoint.url}/v1"
    return agent_of(folder, kind, installed(kind), url=url, **{"key": KEY, **section})


def turns(kind: str, *first: Turn) -> tuple[Turn, ...]:
    return (*first, SUBMIT if kind == "mini-swe-agent" else Say(text="All done."))


async def test_it_edits_a_file_and_its_tokens_are_counted_once(kind: str, worktree: Path, tmp_path: Path) -> None:
    """OB3; the key comes from the gateway: neither environment nor files of the sandbox hold it."""
    with AgentEndpoint(*turns(kind, Run(command="env > seen.txt; sed -i s/old/new/ file.txt"))) as endpoint:
        agent = real(tmp_path, kind, endpoint)
        assert kind in await agent.check(BOX, worktree)
        session = Session(prompt="Change old to new in file.txt.", max_seconds=90)
        report = await agent.run(session, worktree=worktree, sandbox=BOX)
    assert report.finished, report
    assert (worktree / "file.txt").read_text() == "new\n"
    assert report.usage.model_copy(update={"seconds": 0}) == Usage(
        prompt_tokens=2400, cached_tokens=400, completion_tokens=60, calls=2
    )
    assert set(endpoint.keys) == {KEY}
    assert KEY not in (worktree / "seen.txt").read_text()
    assert NO_KEY not in str(endpoint.keys)


async def test_a_refused_key_is_the_accounts_fault(kind: str, worktree: Path, tmp_path: Path) -> None:
    """RB8: nothing is burnt, although the program ended within seconds and with exit code 1."""
    with AgentEndpoint(FORBIDDEN) as endpoint:
        report = await real(tmp_path, kind, endpoint).run(
            Session(prompt="Change old to new.", max_seconds=90), worktree=worktree, sandbox=BOX
        )
    assert not report.finished
    assert report.usage.prompt_tokens == 0
    ending = Ending(
        exit_code=report.exit_code, seconds=60, text=report.output[-2000:], events=report.events, provider=kind
    )
    assert classify(ending, datetime.now(UTC)).kind == "auth"


async def test_a_program_that_would_go_on_for_ever_stops_at_its_turns(
    kind: str, worktree: Path, tmp_path: Path
) -> None:
    with AgentEndpoint(Run(command="echo again")) as endpoint:
        report = await real(tmp_path, kind, endpoint).run(
            Session(prompt="Change old to new.", max_seconds=90, max_turns=4), worktree=worktree, sandbox=BOX
        )
    assert not report.finished
    assert 4 <= endpoint.taken <= 7
    assert report.ran_out in (None, "turns")


@pytest.mark.parametrize("name", ["claude-code", "codex"])
async def test_a_killed_program_leaves_its_count(name: str, worktree: Path, tmp_path: Path) -> None:
    with AgentEndpoint(EDIT, Hang(seconds=60)) as endpoint:
        report = await real(tmp_path, name, endpoint).run(
            Session(prompt="Change old to new.", max_seconds=15), worktree=worktree, sandbox=BOX
        )
    assert (report.finished, report.ran_out) == (False, "time")
    assert report.usage.prompt_tokens == 1200


@pytest.mark.parametrize("name", ["claude-code", "codex"])
async def test_a_resumed_session_remembers_and_counts_only_what_is_new(
    name: str, worktree: Path, tmp_path: Path
) -> None:
    """OB3: both programs then state the totals of the whole session."""
    with AgentEndpoint(EDIT, Say(text="one"), EDIT, Say(text="two")) as endpoint:
        agent = real(tmp_path, name, endpoint)
        first = await agent.run(Session(prompt="The first word.", max_seconds=60), worktree=worktree, sandbox=BOX)
        again = Session(prompt="And the second.", max_seconds=60, resume=first.session_id)
        second = await agent.run(again, worktree=worktree, sandbox=BOX)
    assert (first.said, second.said) == ("one", "two")
    assert second.session_id == first.session_id
    assert (first.usage.prompt_tokens, second.usage.prompt_tokens) == (2400, 2400)
    assert "The first word." in str(endpoint.bodies[-1])


async def test_a_key_that_the_endpoint_refuses_fails_the_check(worktree: Path, tmp_path: Path) -> None:
    with AgentEndpoint(Say(text="x"), models=FORBIDDEN) as endpoint:
        agent = real(tmp_path, "codex", endpoint)
        with pytest.raises(AuthFailed):
            await agent.check(BOX, worktree)
    assert endpoint.taken == 0
