"""Finding and ending what nobody works for any more: runs Prefect still calls running, worktrees, old notes, processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

from prefect import task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from infra import processes
from infra.claims import HELD, Claim, ClaimState
from infra.errors import CapacityUnavailable
from infra.llm import Frozen
from infra.slots import sole
from tasks import checkouts, services
from tasks.launching import ONE, ROUND, SEVERAL

KEPT_DELIVERIES = timedelta(days=14)
GRACE = timedelta(seconds=90)
"""A run may be this old before its claim has to be there, and may go on for this long after its lease has ended: it says
how it ended before it is over."""


class Swept(Frozen):
    """What a sweep found and ended."""

    requeued: tuple[str, ...] = ()
    crashed_runs: int = 0
    worktrees: int = 0
    processes: int = 0


@task(name="requeue lost tickets", task_run_name="requeue lost tickets")
async def requeue_lost() -> tuple[str, ...]:
    """Tickets whose lease ended, or that made no progress for longer than `sweep_seconds` without being stopped.

    Where silence is allowed (RC1: `stall_seconds` of 0 or less), only those that were told to stop and did not.
    """
    return await asyncio.to_thread(_requeue_lost)


def _requeue_lost() -> tuple[str, ...]:
    claims, dispatch = services.claims(), services.settings().dispatch
    lost = [claim for claim in claims.expired() if claims.requeue(claim, "its lease ended", only_expired=True)]
    now = claims.now()
    oldest = now - timedelta(seconds=max(dispatch.sweep_seconds, dispatch.stall_seconds))
    for claim in claims.held():
        if claim.state == "running" and claim.progress_at is not None and claim.progress_at < oldest:
            if claim.stop is None and dispatch.stall_seconds <= 0:
                continue
            if claim.stop is None:
                claims.ask_stop(claim, "stalled: swept by the janitor")
            elif claims.requeue(claim, "stuck, and it did not stop"):
                lost.append(claim)
    return tuple(claim.ticket for claim in lost)


@task(name="end zombie runs", task_run_name="end zombie runs")
async def end_zombie_runs() -> int:
    """Mark the runs that Prefect calls unfinished, but whose claim went on without them, as crashed: a pool counts them as busy."""
    held = {claim.flow_run for claim in await asyncio.to_thread(services.claims().held)}
    count = 0
    async with get_client() as client:
        for run in await _unfinished(client):
            if str(run.id) not in held and await _is_a_zombie(run):
                await client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
                count += 1
    return count


async def _unfinished(client: PrefectClient) -> list[FlowRun]:
    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return await client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[ONE, SEVERAL, ROUND])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=200,
    )


async def _is_a_zombie(run: FlowRun) -> bool:
    """Begun long ago, launched by a dispatcher (it has a token), and its claims have other tokens or are over."""
    given = run.parameters.get("tickets") or [run.parameters]
    if run.parent_task_run_id is not None or any(each.get("token") is None for each in given):
        return False
    now = await asyncio.to_thread(services.claims().now)
    begun = run.start_time or run.expected_start_time
    if begun is None or now - begun < GRACE:
        return False
    return not any([await asyncio.to_thread(_goes_on, each, now) for each in given])


def _goes_on(given: dict[str, Any], now: datetime) -> bool:
    """Whether a run that was given this ticket may still be at work on it, or about to end."""
    claim = services.claims().find(given.get("board", "folder"), given["ticket"])
    if claim is None or claim.token != given["token"]:
        return False
    return claim.state in HELD or now - claim.lease_until < GRACE


@task(name="clean this machine", task_run_name="clean this machine")
async def clean_machine() -> tuple[int, int]:
    """End processes of runs that are over, and remove the worktrees of tickets nobody works on here. Returns both counts."""
    return await _end_strays(), await asyncio.to_thread(_remove_worktrees)


async def _end_strays() -> int:
    """End the processes of runs that no claim holds and no worker looks after, or whose tickets went on without them.

    Only runs that our Prefect server knows: another factory of this machine has its own janitor.
    """
    marked, abandoned = processes.marked_runs(), processes.abandoned_runs()
    held = {claim.flow_run for claim in await asyncio.to_thread(services.claims().held)}
    ended = 0
    async with get_client() as client:
        for mark, pids in marked.items():
            run = await _known(client, mark) if mark not in held else None
            if run is not None and (mark in abandoned or await _is_a_zombie(run)):
                ended += len(pids) if await asyncio.to_thread(processes.end_run, mark) else 0
    return ended


async def _known(client: PrefectClient, mark: str) -> FlowRun | None:
    try:
        return await client.read_flow_run(UUID(mark))
    except (ObjectNotFound, ValueError):
        return None


def _remove_worktrees() -> int:
    """Remove the checkouts of tickets that no process of this machine works on (RC6)."""
    root = services.worktrees()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    claims = services.claims().in_state(*get_args(ClaimState)) if any(map(checkouts.is_unfinished, folders)) else []
    taken = [folder for folder in folders if _take_away(folder, claims)]
    checkouts.remove_lost()
    return len(taken)


def _take_away(folder: Path, claims: Sequence[Claim]) -> bool:
    """Move a ticket's checkouts away, at once, while nobody can begin to work on it. False when somebody does, or will."""
    locks = services.settings().root / "run" / "tickets"
    with ExitStack() as stack:
        try:
            for lock in sorted(locks.glob(f"*--{folder.name}")):
                stack.enter_context(sole(lock, f"ticket {folder.name!r}"))
        except CapacityUnavailable:
            return False
        return checkouts.take_away(folder, claims)


@task(name="forget old deliveries", task_run_name="forget old deliveries")
async def forget_deliveries() -> int:
    return await asyncio.to_thread(services.deliveries().sweep, KEPT_DELIVERIES)
