"""`consolidate_memory`: every six hours what was remembered since is brought together with what was known; see docs/memory.md."""

from __future__ import annotations

from prefect import flow

from tasks.consolidation import Consolidated, alone, decide, finish_open, look, put_right, report
from tasks.memory import is_on


@flow(name="consolidate-memory", persist_result=False)
async def consolidate_memory(dry_run: bool = False) -> Consolidated:
    """Merge, summarise, put aside. The work grows with what is new, not with what is there. A dry run only says what it
    would do. Raises Unreachable (nothing is lost, the next run goes on), CapacityUnavailable when another one is at work."""
    if not is_on():
        return Consolidated(skipped="memory is turned off", dry_run=dry_run)
    async with alone():
        finished = "" if dry_run else await finish_open()
        plan = await decide(await look(), dry_run)
        if not dry_run:
            await put_right(plan)
        done = Consolidated(plan=plan, dry_run=dry_run, finished=finished)
        await report(done)
        return done
