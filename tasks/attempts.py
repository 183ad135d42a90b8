"""The end of an attempt: whose fault it was, what that costs the ticket, and who has to wait. One place decides.

`tasks.failures` judges; here the ledger, the claim, the pauses and the ticket are told. The claim is told last, so a
process that dies before it leaves a lease that ends, and the ticket is queued again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import datetime

from prefect import task

from infra.claims import Claim
from infra.errors import BudgetExhausted, FencedOff, NeedsHuman, Stopped
from infra.ledger import AttemptOutcome
from infra.notify import notify
from infra.pauses import BUDGET, DISPATCH
from infra.redaction import redact
from infra.settings import split_providers
from tasks import services
from tasks.failures import Ending, Fault, classify, pause_until, rests_with_a_person, retry_delay
from tasks.holding import again_after_fault, fence
from tasks.models import FactoryError, Job, Outcome
from tasks.questions import MARKER, may_ask

REMARK_CHARS = 500
CALLED_OFF = (Stopped, NeedsHuman, BudgetExhausted)
"""What ends an attempt although nothing failed."""
_log = logging.getLogger(__name__)
QUESTION = "A question before the work can go on; reply here:\n\n{}"
_HOW_ON = "It is not tried again before the ticket changes, or somebody runs `darkfactory retry {}`."


@task(name="close attempt", task_run_name="close attempt")
async def close(job: Job, outcome: Outcome) -> None:
    """Write how the attempt ended. A rejection burns it; when it was not the last one, the ticket is queued again."""
    ended: AttemptOutcome = "accepted" if outcome.decision == "ACCEPT" else "rejected"
    await asyncio.to_thread(_close, job, ended)
    _log.info("attempt=%d outcome=%s reason=%r", job.attempt, ended, "; ".join(outcome.reasons)[:REMARK_CHARS])


def _close(job: Job, ended: AttemptOutcome) -> None:
    with services.claims().fenced(job.claim):  # whoever took over may be at work on this very attempt
        services.ledger(job.ticket.board).end_attempt(job.attempt_id, ended)
    for scope in filter(None, (provider_scope(job), DISPATCH)):
        services.pauses().succeed(scope)
    claims = services.claims()
    if ended == "rejected" and not job.final:
        claims.retry(job.claim, "rejected", retry_delay(job.claim.failures + 1), "failures")
    else:
        claims.release(job.claim, ended, moved=_board_followed(job))


def _board_followed(job: Job) -> bool:
    """Whether the board shows a state outside the queue now. One that does not must not make us work again for ever."""
    queue = {state.casefold() for state in services.board_section(job.ticket.board).states.queue}
    try:
        found = services.board(job.ticket.board).tickets_by_keys([job.ticket.key])
    except FactoryError:
        return False
    return not found or found[0].state.casefold() not in queue


async def give_back(job: Job, error: FactoryError, seconds: float) -> None:
    """End an attempt that an error stopped, by the fault it was. Does nothing when another run holds the ticket."""
    if not isinstance(error, FencedOff):
        await asyncio.to_thread(_give_back, job, error, seconds)


def _give_back(job: Job, error: FactoryError, seconds: float) -> None:
    now = services.claims().now()
    fault = blame(job, error, seconds, now)
    ended: AttemptOutcome = (
        "work_failed" if fault.burns else "cancelled" if isinstance(error, CALLED_OFF) else "infra_failed"
    )
    with services.claims().fenced(job.claim):  # whoever took over may be at work on this very attempt
        services.ledger(job.ticket.board).end_attempt(
            job.attempt_id, ended, failure_class=type(error).__name__, error=str(error)
        )
    if fault.scope != "ticket":
        _pause(job, error, fault, now)
    last = rests_with_a_person(fault) or (fault.burns and job.final)
    try:
        with fence(job):
            _tell_ticket(job, error, fault, last)
    except FencedOff:
        raise
    except FactoryError as silence:  # a board without our words for states must not make the ticket run for ever
        _log.warning("ticket=%s outcome=not-told reason=%r", job.ticket.key, str(silence))
    _settle(job.claim, error, fault, last)
    _log.warning("attempt=%d outcome=%s class=%s reason=%r", job.attempt, ended, type(error).__name__, str(error)[:REMARK_CHARS])  # fmt: skip


def blame(job: Job, error: FactoryError, seconds: float, now: datetime) -> Fault:
    """Whose fault an error was. A run that we ended ourselves is judged by why we did, not by the class of the error."""
    ending = Ending(
        seconds=seconds,
        text=str(error),
        error=None if isinstance(error, Stopped) else error,
        provider=error.service or job.provider,
        node=services.settings().node_name,
        killed=error.kind if isinstance(error, Stopped) else None,
    )
    return classify(ending, now, fail_fast_seconds=services.settings().dispatch.fail_fast_seconds)


def _pause(job: Job, error: FactoryError, fault: Fault, now: datetime) -> None:
    scope: str | None
    if error.service is not None:
        scope = error.service
    elif fault.scope == "factory":
        scope = BUDGET
    else:
        scope = provider_scope(job) if fault.scope == "provider" else f"node:{job.claim.node}"
    if scope is None:
        return
    pauses = services.pauses()
    until = pause_until(fault, now, pauses.times(scope))
    if pauses.pause(scope, fault.reason, until):
        when = f"until {until:%Y-%m-%d %H:%M} UTC" if until else f"until `darkfactory resume {scope}`"
        notify(services.settings().notify, f"{scope} is paused", f"{fault.reason}; {when}", key=f"pause:{scope}")


def provider_scope(job: Job) -> str | None:
    """The name under which the provider of this job's model is paused. None for several: the router pauses each by itself."""
    return f"provider:{job.provider}" if len(split_providers(job.provider)) == 1 else None


def _tell_ticket(job: Job, error: FactoryError, fault: Fault, last: bool) -> None:
    if job.ticket.board not in services.settings().all_boards:  # a branch without a ticket
        return
    board, key = services.board(job.ticket.board), job.ticket.key
    states = services.board_section(job.ticket.board).states
    if isinstance(error, NeedsHuman):
        board.comment(key, *_question(job.claim, error))
        board.move(key, states.parked)
        return
    if fault.burns or (last and job.dispatched):
        reason = re.sub(r"\s+", " ", str(error))[:REMARK_CHARS].rstrip(".")
        end = f". {_HOW_ON.format(job.ticket.key)}" if last and job.dispatched else ""
        ended = "was stopped" if fault.kind == "budget" else "failed"
        board.comment(key, f"Attempt {job.attempt} {ended}: {reason}{end}", marker=f"failed-{job.attempt}")
    if fault.kind != "cancelled":
        board.move(key, states.parked if last and job.dispatched else job.ticket.state)


def _question(claim: Claim, error: NeedsHuman) -> tuple[str, str]:
    """The comment that asks, with its marker; or says that it is not asked any more (SM8)."""
    asked = redact(error.question)
    if may_ask(claim):
        return QUESTION.format(asked), f"{MARKER}{claim.token}"
    so_far = f"This ticket waited for {claim.continuations} answer(s) already (`dispatch.max_continuations`)"
    end = f"Put the answer into the ticket. {_HOW_ON.format(claim.ticket)}"
    return f"{so_far}, so this is not asked any more:\n\n{asked}\n\n{end}", f"unasked-{claim.token}"


def _settle(claim: Claim, error: FactoryError, fault: Fault, last: bool) -> None:
    claims = services.claims()
    if isinstance(error, NeedsHuman) and may_ask(claim):
        claims.park(claim, "waits for a reply", question=redact(error.question), counter="continuations")
    elif isinstance(error, NeedsHuman):
        claims.park(claim, "asked too often")
    elif fault.kind == "cancelled":
        claims.release(claim, str(error), moved=True)
    elif last:
        claims.park(claim, fault.reason, counter="failures" if fault.burns else None)
    elif fault.burns:
        claims.retry(claim, fault.reason, retry_delay(claim.failures + 1), "failures")
    elif fault.scope == "ticket":
        again_after_fault(claim, fault.reason)
    else:  # people hear of the pause
        claims.retry(claim, fault.reason, retry_delay(claim.infra_faults + 1), "infra_faults")
