"""`dispatch_tickets`: one tick of the factory. Every two minutes by schedule, and at once when a webhook names a ticket."""

from __future__ import annotations

from prefect import flow

from tasks.backlog import refill_when_idle
from tasks.bugs import record_bug
from tasks.dispatching import Dispatched, check_configuration, fetch, launch, reconcile, resume_answered


@flow(name="dispatch-tickets", persist_result=False, on_failure=[record_bug])
async def dispatch_tickets(board: str | None = None, ticket: str | None = None) -> Dispatched:
    """Reconcile, check the configuration, fetch, sort, and launch while slots last (SM2).

    With `board` and `ticket` only that ticket is looked at. Any number of dispatchers may do this at the same time.
    """
    only = (board, ticket) if board and ticket else None
    stopped = await reconcile(only)
    problem = await check_configuration()
    if problem is not None:
        return Dispatched(stopped=stopped, problem=problem)
    await resume_answered()
    waiting, passed_over = await fetch(only)
    launched, too_late = await launch(waiting)
    refilling = not waiting and only is None and await refill_when_idle(tuple(passed_over))
    return Dispatched(launched=launched, stopped=stopped, skipped=passed_over | too_late, refilling=refilling)
