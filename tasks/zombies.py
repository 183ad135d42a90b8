"""Finding and ending what nobody works for any more: runs Prefect still calls running, worktrees, old notes, processes."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

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
from prefect.states import Crashed

from infra import processes
from infra.claims import Claim
from infra.git import Mirror
from infra.llm import Frozen
from infra.slots import is_held
from tasks import services
from tasks.launching import ONE, SEVERAL

KEPT_DELIVERIES = timedelta(days=14)
GRACE_SECONDS = 90.0
"""A run may be this much older than its claim says before it counts as nobody's."""

_log = logging.getLogger(__name__)


class Swept(Frozen):
    """What a sweep found and ended."""

    requeued: tuple[str, ...] = ()
    crashed_runs: int = 0
    worktrees: int = 0
    processes: int = 0


@task(name="requeue lost tickets", task_run_name="requeue lost tickets")
async def requeue_lost() -> tuple[str, ...]:
    """Tickets whose lease ended, or that made no progress for longer than `sweep_seconds` without being stopped."""
    return await asyncio.to_thread(_requeue_lost)


def _requeue_lost() -> tuple[str, ...]:
    claims, dispatch = services.claims(), services.settings().dispatch
    lost = [claim for claim in claims.expired() if claims.requeue(claim, "its lease ended", only_expired=True)]
    now = claims.now()
    oldest = now - timedelta(seconds=max(dispatch.sweep_seconds, dispatch.stall_seconds))
    for claim in claims.held():
        if claim.state == "running" and claim.progress_at is not None and claim.progress_at < oldest:
            claims.ask_stop(claim, "stalled: swept by the janitor")
            lost += [claim] if claim.stop and claims.requeue(claim, "stuck, and it did not stop") else []
    return tuple(claim.ticket for claim in lost)


@task(name="end zombie runs", task_run_name="end zombie runs")
async def end_zombie_runs() -> int:
    """Mark the runs that Prefect calls running, but whose claim went on without them, as crashed: a pool counts them as busy."""
    held = {claim.flow_run for claim in await asyncio.to_thread(services.claims().held)}
    count = 0
    async with get_client() as client:
        for run in await _unfinished(client):
            if str(run.id) not in held and await _is_a_zombie(run):
                await client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
                count += 1
    return count


async def _unfinished(client: PrefectClient) -> list[FlowRun]:
    states = [StateType.RUNNING, StateType.CANCELLING]
    return await client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[ONE, SEVERAL])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        limit=200,
    )


async def _is_a_zombie(run: FlowRun) -> bool:
    """Started long ago, launched by a dispatcher (it has a token), and its claim has another token or is over."""
    if run.start_time is None or run.parent_task_run_id is not None:
        return False
    given = run.parameters.get("tickets") or [run.parameters]
    if any(each.get("token") is None for each in given):
        return False
    now = await asyncio.to_thread(services.claims().now)
    if (now - run.start_time).total_seconds() < GRACE_SECONDS:
        return False
    claims = [await asyncio.to_thread(_claim_of, each) for each in given]
    return not any(claim is not None and claim.token == each["token"] and claim.state in ("claimed", "running")
                   for claim, each in zip(claims, given, strict=True))  # fmt: skip


def _claim_of(given: dict[str, str]) -> Claim | None:
    return services.claims().find(given.get("board", "folder"), given["ticket"])


@task(name="clean this machine", task_run_name="clean this machine")
async def clean_machine() -> tuple[int, int]:
    """End processes of runs that are over, and remove the worktrees of tickets nobody works on here. Returns both counts."""
    return await asyncio.to_thread(_end_strays), await asyncio.to_thread(_remove_worktrees)


def _end_strays() -> int:
    """Processes that carry the mark of a run which no claim of this machine holds."""
    held = {claim.flow_run for claim in services.claims().held()}
    ended = 0
    for run, pids in processes.marked_runs().items():
        if run not in held:
            ended += sum(processes.end_tree(pid, started) for pid in pids if (started := processes.identity(pid)))
    return ended


def _remove_worktrees() -> int:
    """Checkouts of tickets that no process of this machine works on (RC6)."""
    home, root = services.settings().root, services.worktrees()
    locks = home / "run" / "tickets"
    busy = {lock.name.partition("--")[2] for lock in locks.iterdir() if is_held(lock)} if locks.is_dir() else set()
    gone: list[str] = []
    for mirror in sorted((home / "repos").glob("*.git")):
        gone += Mirror(mirror).sweep(root, busy)
    return len(gone)


@task(name="forget old deliveries", task_run_name="forget old deliveries")
async def forget_deliveries() -> int:
    return await asyncio.to_thread(services.deliveries().sweep, KEPT_DELIVERIES)
