"""Holding a ticket while it is worked on: the claim, its heartbeat, and the end of a run that lost it or got stuck."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Literal

from prefect.runtime import flow_run

from infra.claims import Claim
from infra.errors import FactoryError, FencedOff, Stopped
from infra.logs import about
from infra.notify import notify
from infra.processes import MARK
from tasks import progress, services
from tasks.failures import retry_delay
from tasks.models import Assignment, Job, Ticket

KILL_SECONDS = 30.0
"""A run that was told to end, and does not hear it, is killed after this time."""
SETTLE_SECONDS = 120.0
"""A run that heard it is killed when it cannot tell ledger, board and claim within this time."""

FAULTS_UNTIL_ALARM = 3
"""Faults of one ticket's runs after which people are told: they burn no attempt, so nothing else would ever end them."""

_log = logging.getLogger(__name__)
_jobs: dict[str, Job] = {}
"""The jobs of the claims that are held here, by claim key, each known from its first write: who is stopped in the middle of
an `await` cannot tell its attempt how it ended."""


def take_hold(ticket: Ticket, repository: str, token: int | None) -> Claim:
    """The claim a dispatcher made for this run (`token`), else one for a run that a person asked for.

    Raises FencedOff or CapacityUnavailable when somebody else holds the ticket.
    """
    settings, claims = services.settings(), services.claims()
    # not the id of a batch's inner run: the janitor finds processes by the mark, and Prefect lists the outer one
    run = os.environ.get(MARK) or str(flow_run.id or f"process {os.getpid()}")
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

    Raises Stopped (told to, stalled, out of time) or FencedOff (somebody else took over, or may have) in place of what was
    running; the attempt of a stopped run is ended by that reason. Any other way out that left the claim held puts the ticket
    back into the queue. A cancellation that comes from elsewhere stays one.
    """
    current = asyncio.current_task()
    assert current is not None  # noqa: S101  we are inside a coroutine
    heart = _Heart(claim, current)
    heart.start()
    with _named(claim):
        ended = "the run ended without a word"
        try:
            yield
        except asyncio.CancelledError:
            reason = heart.heed()
            if reason is None:
                raise
            await _end_attempt(claim, reason, heart.seconds)
            raise reason from None
        except FactoryError as error:
            ended = str(error)
            raise
        finally:
            heart.end()
            _jobs.pop(claim.key, None)
            await asyncio.to_thread(put_back, claim, ended)


def _named(claim: Claim) -> AbstractContextManager[None]:
    """Log lines inside say whose they are (OB1)."""
    return about(board=claim.board, ticket=claim.ticket, run=claim.flow_run)


async def _end_attempt(claim: Claim, reason: FactoryError, seconds: float) -> None:
    """Tell ledger, ticket and claim why the run was stopped. What cannot be told is logged: the reason matters more."""
    from tasks.attempts import give_back  # writes through `fence`

    job = _jobs.get(claim.key)
    try:
        if job is not None:
            await give_back(job, reason, seconds)
        elif isinstance(reason, Stopped) and reason.kind == "cancelled":
            await asyncio.to_thread(services.claims().release, claim, str(reason), moved=True)
    except FactoryError as error:
        _log.warning("ticket=%s outcome=not-told reason=%r", claim.ticket, str(error))


@contextmanager
def waiting_for_their_turn(tickets: Sequence[Assignment]) -> Iterator[None]:
    """Keep the claims of a batch alive until their own runs start."""
    over = threading.Event()
    pause = services.settings().dispatch.lease_seconds / 3

    def renew() -> None:
        while not over.wait(pause):
            for each in tickets:
                with suppress(FactoryError):  # the database is away: it may be back before the lease ends
                    claim = services.claims().find(each.board, each.ticket)
                    if claim is not None and claim.state == "claimed" and claim.token == each.token:
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
        again_after_fault(claim, reason)
    except FactoryError as error:  # settled, taken over, or no database: then the lease ends by itself
        _log.debug("ticket=%s outcome=not-put-back reason=%r", claim.ticket, str(error))


def again_after_fault(claim: Claim, reason: str) -> None:
    """Queue a ticket again whose run ended through no fault of its own. People are told of the third time."""
    services.claims().retry(claim, reason, retry_delay(claim.infra_faults + 1), "infra_faults")
    if claim.infra_faults + 1 == FAULTS_UNTIL_ALARM:
        title = f"{claim.ticket} cannot be worked on"
        text = (
            f"{reason}; this was fault {FAULTS_UNTIL_ALARM} of its runs, and it is tried again at least every 5 minutes"
        )
        notify(services.settings().notify, title, text, key=f"faults:{claim.board}:{claim.ticket}")


@contextmanager
def fence(job: Job) -> Iterator[None]:
    """Do a side effect on board, remote or forge as the ticket's only holder. Raises FencedOff before anything is done."""
    _jobs[job.claim.key] = job
    with services.claims().fenced(job.claim):
        try:
            yield
        except FactoryError as error:
            error.service = f"board:{job.ticket.board}"
            raise


class _Heart(threading.Thread):
    """Renews the lease at a third of its length, and ends the run when it must not go on.

    The task is cancelled at most once, in its own loop and never after `end`, so a cancellation always lands inside `holding`.
    """

    def __init__(self, claim: Claim, task: asyncio.Task[object]) -> None:
        super().__init__(name=f"heartbeat of {claim.ticket}", daemon=True)
        self.reason: FactoryError | None = None
        self._claim, self._settled = claim, False
        self._task, self._loop = task, asyncio.get_running_loop()
        self._cancels_before, self._has_cancelled = task.cancelling(), False
        self._heeded, self._over = threading.Event(), threading.Event()
        self._since = self._renewed = time.monotonic()
        progress.touch()

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return time.monotonic() - self._since

    def run(self) -> None:
        with _named(self._claim):
            try:
                while self.reason is None:
                    if self._over.wait(self._claim.lease_seconds / 3):
                        return
                    self.reason = self._look()
            finally:  # also when the heart itself broke: without a lease the run is worth nothing
                if not self._over.is_set():
                    self._end_run()

    def heed(self) -> FactoryError | None:
        """Take this heart's cancellation of the task back. Returns its reason, or None when somebody else cancelled, too."""
        self._heeded.set()
        if not self._has_cancelled:
            return None
        self._has_cancelled = False
        return self.reason if self._task.uncancel() <= self._cancels_before else None

    def end(self) -> None:
        """The run is over: nothing is cancelled or killed any more, even while the thread is still looking."""
        self._over.set()
        self.heed()
        self.join(timeout=10)

    def _look(self) -> FactoryError | None:
        """Why the run must not go on. Whether the ticket is still ours comes first: a run that was suspended has stalled, too."""
        idle = progress.idle_seconds()
        return self._renew(idle) or self._time_out(idle)

    def _renew(self, idle: float) -> FactoryError | None:
        if self._settled:
            return None
        try:
            told = services.claims().renew(self._claim, idle)
        except FencedOff as error:
            return self._unless_settled(error)
        except FactoryError as error:  # the database is away: go on while the lease lasts, it may come back
            return self._when_expired(error)
        self._renewed = time.monotonic()
        return Stopped(told, _kind(told)) if told else None

    def _unless_settled(self, fenced: FencedOff) -> FencedOff | None:
        """A claim that is over under our own token was ended by the run itself, which is about to leave."""
        try:
            claim = services.claims().find(self._claim.board, self._claim.ticket)
        except FactoryError:
            return None  # asked again at the next beat
        self._settled = claim is not None and claim.token == self._claim.token
        return None if self._settled else fenced

    def _when_expired(self, error: FactoryError) -> FencedOff | None:
        if time.monotonic() - self._renewed <= self._claim.lease_seconds:
            return None
        return FencedOff(f"the lease of ticket {self._claim.ticket!r} ended, it could not be renewed: {error}")

    def _time_out(self, idle: float) -> Stopped | None:
        dispatch = services.settings().dispatch
        if 0 < dispatch.stall_seconds < idle:
            return Stopped(f"nothing happened for {idle:.0f} s", "stalled")
        if self.seconds > dispatch.session_seconds:
            return Stopped(f"the session lasted longer than {dispatch.session_seconds:.0f} s", "timeout")
        return None

    def _end_run(self) -> None:
        self.reason = self.reason or FencedOff(
            f"the heartbeat of ticket {self._claim.ticket!r} broke; see the run's log"
        )
        _log.warning("ticket=%s outcome=stopped reason=%r", self._claim.ticket, str(self.reason))
        with suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(self._cancel)
        if not self._heeded.wait(KILL_SECONDS) or not self._over.wait(SETTLE_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)  # sandboxed commands die with us, the worker ends the rest

    def _cancel(self) -> None:
        if not self._over.is_set():
            self._has_cancelled = True
            self._task.cancel()


def _kind(told: str) -> Literal["stalled", "timeout", "cancelled"]:
    """What a run that is told to stop was, by the first word: `stalled: …`, `timeout: …`, and anything else is a cancelling."""
    match told.partition(":")[0]:
        case "stalled":
            return "stalled"
        case "timeout":
            return "timeout"
    return "cancelled"
