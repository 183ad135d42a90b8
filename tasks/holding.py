"""Holding a ticket while it is worked on: the claim, its heartbeat, and the end of a run that lost it or got stuck."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from prefect.runtime import flow_run

from infra.claims import Claim
from infra.errors import FactoryError, FencedOff, Stopped, Unreachable
from tasks import progress, services
from tasks.failures import retry_delay
from tasks.models import Assignment, Job, Ticket

KILL_SECONDS = 30.0
"""A run that was told to end, and could not, is killed after this time."""

_log = logging.getLogger(__name__)


def take_hold(ticket: Ticket, repository: str, token: int | None) -> Claim:
    """The claim a dispatcher made for this run (`token`), else one for a run that a person asked for.

    Raises FencedOff or CapacityUnavailable when somebody else holds the ticket.
    """
    settings, claims = services.settings(), services.claims()
    run = str(flow_run.id or f"process {os.getpid()}")
    if token is not None:
        return claims.start(ticket.board, ticket.key, token, flow_run=run, machine=settings.machine)
    return claims.seize(
        ticket,
        holder=f"{settings.node_name}:{os.getpid()}",
        machine=settings.machine,
        node=settings.node_name,
        repository=repository,
        lease_seconds=settings.dispatch.lease_seconds,
        flow_run=run,
    )


@asynccontextmanager
async def holding(claim: Claim) -> AsyncIterator[None]:
    """Keep the claim alive while inside, from a thread of its own so that a busy loop does not lose it.

    Raises Stopped (told to, stalled, out of time) or FencedOff (somebody else took over) in place of what was running.
    Any other way out that left the claim held puts the ticket back into the queue.
    """
    current = asyncio.current_task()
    assert current is not None  # noqa: S101  we are inside a coroutine
    heart = _Heart(claim, current)
    heart.start()
    try:
        yield
    except asyncio.CancelledError:
        if heart.reason is None:
            raise
        current.uncancel()
        raise heart.reason from None
    finally:
        heart.end()
        await asyncio.to_thread(put_back, claim, "the run ended without a word")


@contextmanager
def waiting_for_their_turn(tickets: Sequence[Assignment]) -> Iterator[None]:
    """Keep the claims of a batch alive until their own runs start."""
    over = threading.Event()
    pause = services.settings().dispatch.lease_seconds / 3

    def renew() -> None:
        while not over.wait(pause):
            for each in tickets:
                claim = services.claims().find(each.board, each.ticket)
                if claim is not None and claim.state == "claimed" and claim.token == each.token:
                    with suppress(FactoryError):
                        services.claims().renew(claim)

    thread = threading.Thread(target=renew, name="heartbeat of a batch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def put_back(claim: Claim, reason: str) -> None:
    """Queue the ticket again when this claim still holds it; nothing when it was settled, or taken over."""
    try:
        services.claims().retry(claim, reason, retry_delay(claim.infra_faults + 1), "infra_faults")
    except (FencedOff, Unreachable) as error:
        _log.debug("ticket=%s outcome=not-put-back reason=%r", claim.ticket, str(error))


@contextmanager
def fence(job: Job) -> Iterator[None]:
    """Do a side effect on board, remote or forge as the ticket's only holder. Raises FencedOff before anything is done."""
    with services.claims().fenced(job.claim):
        try:
            yield
        except FactoryError as error:
            error.service = f"board:{job.ticket.board}"
            raise


class _Heart(threading.Thread):
    """Renews the lease at a third of its length, and ends the run when it must not go on."""

    def __init__(self, claim: Claim, task: asyncio.Task[object]) -> None:
        super().__init__(name=f"heartbeat of {claim.ticket}", daemon=True)
        self.reason: FactoryError | None = None
        self._claim = claim
        self._task, self._loop = task, asyncio.get_running_loop()
        self._over = threading.Event()
        self._since = self._renewed = time.monotonic()
        progress.touch()

    def run(self) -> None:
        while not self._over.wait(self._claim.lease_seconds / 3):
            self.reason = self._look()
            if self.reason is not None:
                return self._end_run()
        return None

    def end(self) -> None:
        self._over.set()
        if self.ident is not None and self is not threading.current_thread():
            self.join(timeout=10)

    def _look(self) -> FactoryError | None:
        dispatch = services.settings().dispatch
        idle = progress.idle_seconds()
        if 0 < dispatch.stall_seconds < idle:
            return Stopped(f"nothing happened for {idle:.0f} s", "stalled")
        if time.monotonic() - self._since > dispatch.session_seconds:
            return Stopped(f"the session lasted longer than {dispatch.session_seconds:.0f} s", "timeout")
        try:
            told = services.claims().renew(self._claim, idle)
        except FencedOff as error:
            return error
        except FactoryError as error:  # the database is away: go on while the lease lasts, it may come back
            lasted = time.monotonic() - self._renewed
            return Stopped(f"the lease could not be renewed: {error}") if lasted > self._claim.lease_seconds else None
        self._renewed = time.monotonic()
        return Stopped(told) if told else None

    def _end_run(self) -> None:
        _log.warning("ticket=%s outcome=stopped reason=%r", self._claim.ticket, str(self.reason))
        self._loop.call_soon_threadsafe(self._task.cancel)
        if not self._over.wait(KILL_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)  # sandboxed commands die with us, the worker ends the rest
