"""The janitor on a real database, Prefect server and process table: it ends what is nobody's, and nothing else."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
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


ROOT = Path(__file__).parents[2]


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


async def test_where_silence_is_allowed_only_a_run_that_was_told_to_stop_loses_its_ticket(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC1: 0 or less means never, for the janitor too; and one that does not heed its stop is stuck all the same."""
    from tasks import services

    monkeypatch.setenv("DARKFACTORY_DISPATCH", '{"stall_seconds": 0}')
    services.close()
    quiet, told = claimed("quiet"), claimed("told")
    services.claims().ask_stop(told, "cancelled: the ticket is closed")
    for claim in (quiet, told):
        services.claims().renew(claim, idle_seconds=100_000)
    assert (await sweep()).requeued == (told.ticket,)
    assert (now(quiet).state, now(quiet).stop) == ("running", None)


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


MAKE = """
import contextlib, os, sys
from pathlib import Path
from infra.git import Mirror
mirror, root, *keys = sys.argv[1:]
with contextlib.ExitStack() as stack:
    for key in keys:
        tree = stack.enter_context(Mirror(Path(mirror)).worktree(Path(root), key, "coder", Mirror(Path(mirror)).base(None)[1]))
        (tree.path / "half.py").write_text("unfinished")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def worktrees(factory: Factory, clock: Clock) -> Callable[..., list[Path]]:
    """Makes checkouts that a killed run left behind, with everything git knows of them."""
    from infra.git import Mirror, directory_name
    from tasks import services

    mirror = Mirror.open(factory.home / "repos", "shop", str(make_repository(factory.home / "source")))

    def leave(*keys: str) -> list[Path]:
        command = [sys.executable, "-c", MAKE, str(mirror.path), str(services.worktrees()), *keys]
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == -9
        return [services.worktrees() / directory_name(key) / "coder" for key in keys]

    return leave


async def test_worktrees_of_killed_runs_go_and_those_of_live_ones_stay(
    factory: Factory, worktrees: Callable[..., list[Path]]
) -> None:
    """RC6, I13: the kernel says who lives; a name with dashes does not mislead."""
    from tasks import services

    dead, live, dashed = worktrees("dead", "live", "a--b")
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


async def test_a_checkout_in_use_stays_whoever_uses_it(factory: Factory, worktrees: Callable[..., list[Path]]) -> None:
    """I13: a playbook, a repair and a proposal hold no ticket's lock, and lose nothing under their feet."""
    from infra.git import Mirror
    from tasks import services

    (dead,) = worktrees("playbook-1")
    mirror = Mirror(next((factory.home / "repos").glob("*.git")))
    with mirror.worktree(services.worktrees(), "playbook-1", "checkout", mirror.base(None)[1]) as used:
        assert (await clean()).worktrees == 0
        assert used.read("README.md") == "# Shop\n"
    assert (await clean()).worktrees == 1
    assert not dead.exists()


async def test_unfinished_work_stays_while_its_ticket_may_come_back(
    factory: Factory, worktrees: Callable[..., list[Path]]
) -> None:
    """WS3, RC3, RC6: waiting, parked or only moved away; not when it is closed or done, nor for ever."""
    from tasks import services

    held = {name: claimed(name) for name in ("waits", "asks", "moved", "closed", "gone", "done", "old", "other")}
    left = dict(zip(held, worktrees(*(claim.ticket for claim in held.values())), strict=True))
    for name, folder in left.items():
        if name != "other":
            mark = folder.parent / ".private" / "coder" / "session"
            mark.write_text("work 0000")
    os.utime(left["old"].parent / ".private" / "coder" / "session", (0, 0))
    claims = services.claims()
    claims.retry(held["waits"], "its lease ended", 10, "infra_faults")
    claims.park(held["asks"], "waits for a reply", question="?")
    claims.release(held["moved"], "cancelled: the ticket was moved to 'backlog'", moved=True)
    claims.release(held["closed"], "cancelled: the ticket is closed", moved=True)
    claims.release(held["gone"], "cancelled: the ticket is gone", moved=True)
    claims.release(held["done"], "accepted", moved=True)
    assert (await clean()).worktrees == 5
    assert {name for name, folder in left.items() if (folder / "half.py").exists()} == {"waits", "asks", "moved"}


async def test_unfinished_work_makes_room_when_no_ticket_could_start_any_more(
    factory: Factory, worktrees: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS3: an agent that filled the disk, and was killed over it."""
    from tasks import checkouts

    (left,) = worktrees(claimed("waits").ticket)
    (left.parent / ".private" / "coder" / "session").write_text("work 0000")
    assert (await clean()).worktrees == 0
    monkeypatch.setattr(checkouts, "FREE_BYTES_NEEDED", 1 << 62)
    assert (await clean()).worktrees == 1
    assert not left.exists()


async def test_a_run_that_ends_tidies_up_what_its_ticket_does_not_need_any_more(
    factory: Factory, worktrees: Callable[..., list[Path]]
) -> None:
    """RC3, A3: at once when the ticket is closed; the janitor is for what nobody lives to remove."""
    from tasks import services
    from tasks.intake import alone

    held = {name: claimed(name) for name in ("closed", "moved")}
    left = dict(zip(held, worktrees(*(claim.ticket for claim in held.values())), strict=True))
    for name, claim in held.items():
        (left[name].parent / ".private" / "coder" / "session").write_text("work 0000")
        reason = "the ticket is closed" if name == "closed" else "the ticket was moved to 'backlog'"
        with alone(Ticket(key=claim.ticket, title="t", body="b", state="todo")):
            services.claims().release(claim, f"cancelled: {reason}", moved=True)
    assert [left[name].exists() for name in ("closed", "moved")] == [False, True]


async def test_two_janitors_at_once_get_along(factory: Factory, worktrees: Callable[..., list[Path]]) -> None:
    """I13: by schedule and at a node's start in the same second; what one took the other does not miss."""
    from tasks.zombies import _remove_worktrees

    left = worktrees(*(f"dead-{n}" for n in range(12)))
    counts = await asyncio.gather(*(asyncio.to_thread(_remove_worktrees) for _ in range(3)))
    assert sum(counts) == 12
    assert not any(folder.exists() for folder in left)


async def test_a_cleaning_that_is_killed_half_way_is_finished_by_the_next(
    factory: Factory, worktrees: Callable[..., list[Path]]
) -> None:
    """FM1: moved away, and not yet removed."""
    (left,) = worktrees("dead")
    lost = factory.home / "run" / "lost-worktrees" / "dead.0000"
    lost.parent.mkdir(parents=True)
    left.parent.rename(lost)
    assert (await clean()).worktrees == 0
    assert not lost.exists()
