"""The janitor on a real database, Prefect server and process table: it ends what is nobody's, and nothing else."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running

from infra import processes
from infra.boards import Ticket
from infra.claims import Claim
from infra.slots import sole
from tests.flows.conftest import Factory
from tests.flows.test_dispatch import Clock
from tests.shop import make_repository

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def clock(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time of leases; Prefect's own stays where it is, so it starts well after the grace of runs that just began."""
    from tasks import services

    made = Clock(datetime.now(UTC) + timedelta(minutes=10))
    monkeypatch.setattr(services, "clock", made)
    factory.forget()
    return made


def claimed(run: UUID | str | None, *, started: bool = True) -> Claim:
    """A ticket of its own that is held by this run."""
    from tasks import services

    ticket = Ticket(key=f"t{secrets.token_hex(4)}", title="t", body="b", state="todo")
    claims = services.claims()
    found = claims.claim(
        ticket,
        holder="h",
        machine="m",
        repository="r",
        lease_seconds=60,
        read_at=claims.now(),
        choose_node=lambda _: "n",
    )
    assert found
    if started:
        return services.claims().start(found.board, found.ticket, found.token, flow_run=str(run), machine="m")
    return found


async def running(**parameters: Any) -> UUID:
    """A run of `work_ticket` that Prefect calls running."""
    from flows.ticket import work_ticket

    async with get_client() as client:
        run = await client.create_flow_run(work_ticket, parameters=parameters, state=Running())
        return run.id


async def state_of(run: UUID) -> str:
    async with get_client() as client:
        found = (await client.read_flow_run(run)).state
        return found.name if found else ""


async def sweep() -> Any:
    from flows.janitor import sweep

    return await sweep()


async def clean() -> Any:
    from flows.janitor import clean_node

    return await clean_node()


def now(claim: Claim) -> Any:
    from tasks import services

    return services.claims().find(claim.board, claim.ticket)


async def test_what_lost_its_lease_is_requeued_once_and_what_lives_stays(clock: Clock) -> None:
    """I13, SM11"""
    from tasks import services

    dead, alive, launched = claimed("dead"), claimed("alive"), claimed(None, started=False)
    clock.move(seconds=61)
    services.claims().renew(alive, 0)
    assert set((await sweep()).requeued) == {dead.ticket, launched.ticket}
    assert (now(dead).state, now(dead).token, now(dead).infra_faults) == ("retry-queued", 2, 1)
    assert (now(launched).state, now(launched).infra_faults) == ("retry-queued", 0), "it never started"
    assert now(alive).state == "running"
    assert (await sweep()).requeued == ()


async def test_a_run_that_beats_but_gets_nowhere_is_told_first_and_then_loses_its_ticket(clock: Clock) -> None:
    """RC9, I13: the sweep for what is stuck longer than `sweep_seconds`."""
    from tasks import services

    stuck = claimed("stuck")
    services.claims().renew(stuck, idle_seconds=1900)
    assert (await sweep()).requeued == ()
    assert now(stuck).stop == "stalled: swept by the janitor"
    assert services.claims().renew(stuck, idle_seconds=1900) == "stalled: swept by the janitor"
    assert (await sweep()).requeued == (stuck.ticket,)
    assert (now(stuck).state, now(stuck).token) == ("retry-queued", 2)


async def test_runs_whose_claim_went_on_without_them_are_crashed_and_no_others(clock: Clock) -> None:
    """I13: Prefect's word is not enough; a run that a person started, a live one and one that just ended are left alone."""
    from tasks import services

    def given(claim: Claim) -> dict[str, Any]:
        return {"ticket": claim.ticket, "repository": "r", "board": claim.board, "token": claim.token}

    first, second, third = (claimed("x", started=False) for _ in range(3))
    zombie, live, ended = [await running(**given(claim)) for claim in (first, second, third)]
    by_hand = await running(ticket=first.ticket, repository="r", board="folder")
    unknown = await running(ticket="forgotten", repository="r", board="folder", token=7)
    services.claims().requeue(first, "its lease ended")
    services.claims().start(second.board, second.ticket, second.token, flow_run=str(live), machine="m")
    services.claims().release(third, "accepted", moved=True)
    assert (await sweep()).crashed_runs >= 2
    assert [await state_of(run) for run in (zombie, unknown)] == ["Crashed", "Crashed"]
    assert [await state_of(run) for run in (live, ended, by_hand)] == ["Running"] * 3
    clock.move(seconds=60 + 91)
    services.claims().renew(second, 0)
    await sweep()
    assert [await state_of(run) for run in (live, ended, by_hand)] == ["Running", "Crashed", "Running"]


@pytest.fixture
def stray() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process that sleeps and carries the mark of a run."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mark: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], processes.MARK: mark}
        started.append(subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=10)


async def test_marked_processes_of_runs_that_are_over_are_ended(
    clock: Clock, stray: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    """RC8, RC10: what a claim still holds may live on; other factories' processes are none of our business."""
    over = await running(ticket="gone", repository="r", board="folder", token=1)
    live = await running(ticket="live", repository="r", board="folder", token=1)
    claimed(live)
    killed, alive, foreign, odd = stray(str(over)), stray(str(live)), stray(secrets.token_hex(16)), stray("no run")
    assert (await clean()).processes == 1
    assert killed.wait(timeout=10) < 0
    assert [process.poll() for process in (alive, foreign, odd)] == [None, None, None]


@pytest.fixture
def worktrees(factory: Factory, clock: Clock) -> Iterator[Callable[[str], Path]]:
    """Makes a checkout that a killed run left behind, with everything git knows of it."""
    from infra.git import Mirror
    from tasks import services

    mirror = Mirror.open(factory.home / "repos", "shop", str(make_repository(factory.home / "source")))

    def leave(key: str) -> Path:
        _, sha = mirror.base(None)
        worktree = running.enter_context(mirror.worktree(services.worktrees(), key, "coder", sha))
        (worktree.path / "half.py").write_text("unfinished")
        return worktree.path

    with ExitStack() as running:
        yield leave


async def test_worktrees_of_killed_runs_go_and_those_of_live_ones_stay(
    factory: Factory, worktrees: Callable[[str], Path]
) -> None:
    """RC6, I13: the kernel says who lives; a name with dashes does not mislead."""
    from tasks import services

    dead, live, dashed = worktrees("dead"), worktrees("live"), worktrees("a--b")
    services.ticket_lock("folder", "dead").mkdir(parents=True)
    with (
        sole(services.ticket_lock("folder", "live"), "live"),
        sole(services.ticket_lock("my--board", "a--b"), "dashed"),
    ):
        assert (await clean()).worktrees == 1
        assert (dead.exists(), live.exists(), dashed.exists()) == (False, True, True)
        assert (await clean()).worktrees == 0
    assert (await clean()).worktrees == 2
    assert not live.exists()
    assert list((factory.home / "repos").glob("*/worktrees/*")) == [], "git forgot them, too"
    assert list((factory.home / "run" / "lost-worktrees").iterdir()) == []


async def test_a_cleaning_that_is_killed_half_way_is_finished_by_the_next(
    factory: Factory, worktrees: Callable[[str], Path]
) -> None:
    """FM1: moved away, and not yet removed."""
    left = worktrees("dead")
    lost = factory.home / "run" / "lost-worktrees" / "dead.0000"
    lost.parent.mkdir(parents=True)
    left.parent.rename(lost)
    assert (await clean()).worktrees == 0
    assert not lost.exists()
