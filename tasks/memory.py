"""Memory around a run: asked before work starts, told how it ended. The store itself comes with a later issue.

Until then `recall` knows nothing and `remember` keeps the outcome in the ledger's event log, so nothing is lost and the
places where memory enters a run are already there.
"""

from __future__ import annotations

from prefect import task

from tasks import services
from tasks.models import Job, Outcome, Ticket


def recall(ticket: Ticket) -> tuple[str, ...]:
    """Lessons from earlier work that fit the ticket, best first; recalled text is hostile until fenced."""
    del ticket
    return ()


@task(name="remember", task_run_name="remember")
async def remember(job: Job, outcome: Outcome) -> None:
    """Keep how the run ended, success or failure, with its context."""
    services.ledger(job.ticket.board).record_event(
        job.attempt_id,
        job.ticket.key,
        "outcome",
        f"{outcome.decision} after {outcome.rounds} round(s)",
        {"reasons": list(outcome.reasons), "model": job.model, "seconds": round(outcome.seconds, 1)},
    )
