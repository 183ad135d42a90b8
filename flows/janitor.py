"""The janitor: every quarter of an hour, and when a node starts, it puts right what killed processes left behind."""

from __future__ import annotations

from prefect import flow

from tasks.actions import end_lost_units
from tasks.bugs import record_bug
from tasks.zombies import Swept, clean_machine, end_zombie_runs, forget_deliveries, requeue_lost


@flow(name="sweep", persist_result=False, on_failure=[record_bug])
async def sweep() -> Swept:
    """Requeue tickets that lost their holder, end runs that only Prefect believes in or that nobody waits for on
    GitHub's runners, forget old deliveries."""
    requeued = await requeue_lost()
    crashed = await end_zombie_runs()
    await end_lost_units()
    await forget_deliveries()
    return Swept(requeued=requeued, crashed_runs=crashed)


@flow(name="clean-node", persist_result=False, on_failure=[record_bug])
async def clean_node() -> Swept:
    """End stray processes and remove stray worktrees of the machine this runs on."""
    ended, removed = await clean_machine()
    return Swept(processes=ended, worktrees=removed)
