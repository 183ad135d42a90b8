"""Claims: who works on which ticket, at most one at a time on any number of machines, with a lease and a fencing token.

One row per ticket that was ever claimed; this module alone changes its state (SM1). A ticket without a row is unclaimed.
All times come from the database's clock, so that machines with wrong clocks agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import CheckConstraint, Index, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.boards import Ticket
from infra.database import Clock, Database, Row, Table, now
from infra.errors import CapacityUnavailable, FencedOff
from infra.redaction import redact

ClaimState = Literal["claimed", "running", "retry-queued", "parked", "released"]
HELD: tuple[ClaimState, ...] = ("claimed", "running")
COUNTERS = ("failures", "continuations", "revisions", "ci_fixes", "conflict_fixes", "infra_faults")
_DISPATCH_LOCK = 7_203_773


class ClaimTable(Table):
    """The claim of one ticket. `token` grows with every new holder; whoever shows an older one is fenced off."""

    __tablename__ = "claims"
    __table_args__ = (
        CheckConstraint("state in ('claimed', 'running', 'retry-queued', 'parked', 'released')", name="state_known"),
        Index(None, "state", "lease_until"),
    )
    board: Mapped[str] = mapped_column(primary_key=True)
    ticket: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    token: Mapped[int]
    holder: Mapped[str]
    machine: Mapped[str]
    node: Mapped[str]
    repository: Mapped[str]
    ticket_state: Mapped[str]
    assignee: Mapped[str | None]
    content: Mapped[str]
    claimed_at: Mapped[datetime]
    lease_until: Mapped[datetime]
    lease_seconds: Mapped[float]
    flow_run: Mapped[str | None]
    due_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(server_default="")
    stop: Mapped[str | None]
    question: Mapped[str | None]
    moved: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[datetime | None]
    progress_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    failures: Mapped[int] = mapped_column(server_default="0")
    continuations: Mapped[int] = mapped_column(server_default="0")
    revisions: Mapped[int] = mapped_column(server_default="0")
    ci_fixes: Mapped[int] = mapped_column(server_default="0")
    conflict_fixes: Mapped[int] = mapped_column(server_default="0")
    infra_faults: Mapped[int] = mapped_column(server_default="0")


class Claim(Row):
    """A claim as it was read. `machine` is where its holder's kernel lock lives; `content` the ticket's text at that time;
    `assignee` whose ticket it was when it had settled at work (nobody's: empty; not seen yet: None); `moved`: the board was
    seen to have taken the state the factory set at the end."""

    board: str
    ticket: str
    state: ClaimState
    token: int
    holder: str
    machine: str
    node: str
    repository: str
    ticket_state: str
    assignee: str | None = None
    content: str
    claimed_at: datetime
    lease_until: datetime
    lease_seconds: float
    flow_run: str | None = None
    due_at: datetime | None = None
    reason: str = ""
    stop: str | None = None
    question: str | None = None
    moved: bool = False
    started_at: datetime | None = None
    progress_at: datetime | None = None
    failures: int = 0
    continuations: int = 0
    revisions: int = 0
    ci_fixes: int = 0
    conflict_fixes: int = 0
    infra_faults: int = 0

    @property
    def key(self) -> str:
        """The idempotency key of this holder's run. The time tells it from that of another ledger on the same Prefect server."""
        return f"{self.board}:{self.ticket}:{self.token}:{self.claimed_at.timestamp():.3f}"


class Claims:
    """Reads and changes of the claims of all boards. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._now = partial(now, clock=clock)

    def claim(
        self,
        ticket: Ticket,
        *,
        holder: str,
        machine: str,
        repository: str,
        lease_seconds: float,
        read_at: datetime,
        choose_node: Callable[[Sequence[Claim]], str | None],
    ) -> Claim | None:
        """Claim a ticket for the node that `choose_node` picks from what is held now; None: not claimable, or no room.

        One dispatcher at a time decides, so caps hold for any number of them (SM5). A claim that was made but never started
        is handed on with its node and token, so that its launch stays the same launch; a run whose lease ended gets a new
        token. `ticket` was read at `read_at` (`now` of this class, taken before): a claim that changed since is not taken,
        because its run may have ended and moved the ticket meanwhile.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_DISPATCH_LOCK)))
            now, row = self._now(session), self._row(session, ticket.board, ticket.key)
            if row is not None and (row.updated_at > read_at or not is_claimable(row, ticket, now)):
                return None
            if row is not None and row.state == "claimed":
                row.holder, row.machine, row.lease_until = holder, machine, now + timedelta(seconds=lease_seconds)
                session.flush()
                return Claim.model_validate(row)
            node = choose_node([c for c in self._read(session, self._held()) if not _is(c, row)])
            if node is None:
                return None
            return self._take(session, row, ticket, now, holder, machine, node, repository, lease_seconds)

    def seize(
        self,
        ticket: Ticket,
        *,
        holder: str,
        machine: str,
        node: str,
        repository: str,
        lease_seconds: float,
        flow_run: str,
    ) -> Claim:
        """Claim and start at once for a run that a person asked for: whatever the ticket's state, unless a live run has it.

        The caller holds the kernel lock of the ticket on `machine`, so a claim of that machine has a dead holder.
        Raises CapacityUnavailable when another machine's lease has not ended, or a ticket of another board, with the same
        key and so the same branch and checkouts, is being worked on.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_DISPATCH_LOCK)))
            now, row = self._now(session), self._row(session, ticket.board, ticket.key)
            self._refuse_twin(session, ticket, now)
            if row is not None and row.state in HELD and row.machine != machine and row.lease_until > now:
                raise CapacityUnavailable(
                    f"ticket {ticket.key!r} is held by node {row.node!r} until {row.lease_until:%H:%M:%S} UTC at least; "
                    "wait for it to end, or stop it there"
                )
            taken = self._take(session, row, ticket, now, holder, machine, node, repository, lease_seconds)
        return self.start(taken.board, taken.ticket, taken.token, flow_run=flow_run, machine=machine)

    def start(self, board: str, ticket: str, token: int, *, flow_run: str, machine: str) -> Claim:
        """The run of this token begins: claimed -> running. The same run may start again. Raises FencedOff otherwise."""
        with self._transaction() as session:
            now, row = self._now(session), self._row(session, board, ticket)
            fresh = row is not None and row.state == "claimed"
            if (
                row is None
                or row.token != token
                or not (fresh or (row.state == "running" and row.flow_run == flow_run))
            ):
                raise _fenced(board, ticket, token, row)
            row.state, row.flow_run, row.machine, row.stop = "running", flow_run, machine, None
            row.started_at = row.started_at if not fresh and row.started_at else now
            row.progress_at = row.updated_at = now
            row.lease_until = now + timedelta(seconds=row.lease_seconds)
            session.flush()
            return Claim.model_validate(row)

    def launched(self, claim: Claim, flow_run: str) -> None:
        """Remember which run was created for a claim; nothing when it has moved on meanwhile."""
        mine = self._mine(claim).where(ClaimTable.state == "claimed")
        with self._transaction() as session:
            session.execute(mine.values(flow_run=flow_run))

    def renew(self, claim: Claim, idle_seconds: float | None = None) -> str | None:
        """Prolong the lease, and note how long ago the run last got on. Returns why the run shall stop, if it shall.

        Raises FencedOff when another holder took over or the claim ended.
        """
        with self._transaction() as session:
            row = self._own_row(session, claim)
            now = self._now(session)
            row.lease_until = now + timedelta(seconds=row.lease_seconds)
            if idle_seconds is not None:
                row.progress_at = now - timedelta(seconds=idle_seconds)
            return row.stop

    @contextmanager
    def fenced(self, claim: Claim) -> Iterator[None]:
        """Do a side effect as the ticket's only holder: nobody can take the ticket over before the block ends.

        Raises FencedOff, before anything was done, when somebody already did. One that takes longer than
        `database.SILENCE_SECONDS`, or whose process is suspended that long, loses its connection and with it the row lock.
        """
        with self._transaction() as session:
            self._own_row(session, claim)
            yield

    def release(self, claim: Claim, reason: str, *, moved: bool) -> None:
        """The work ended, accepted or rejected: not dispatched again unless the ticket changes, or is moved back."""
        self._end(claim, state="released", reason=reason, moved=moved, question=None)

    def retry(self, claim: Claim, reason: str, delay_seconds: float, counter: str | None) -> None:
        """Give the slot back and try again later; replaces an earlier date (RB3). `counter` counts one more (RB6)."""
        self._end(claim, state="retry-queued", reason=reason, delay=delay_seconds, counter=counter)

    def park(self, claim: Claim, reason: str, *, question: str | None = None, counter: str | None = None) -> None:
        """Nothing happens until a person answers `question`, or changes the ticket (RB7, RC7)."""
        self._end(claim, state="parked", reason=reason, question=question, counter=counter)

    def resume(self, claim: Claim, reason: str) -> bool:
        """A ticket that is parked, or waits for its time, may go on now. False when it did neither any more."""
        resumed = self._mine(claim).where(ClaimTable.state.in_(("parked", "retry-queued")))
        with self._transaction() as session:
            now = self._now(session)
            done = session.execute(
                resumed.values(state="retry-queued", due_at=now, question=None, reason=reason, updated_at=now)
            )
            return bool(done.rowcount)  # type: ignore[attr-defined]  # an update's result has it

    def forget(self, claim: Claim, reason: str) -> bool:
        """Release what is queued or parked, or claimed and never started: the ticket is gone, closed or not ours any more."""
        waiting = self._mine(claim).where(ClaimTable.state.in_(("retry-queued", "parked", "claimed")))
        with self._transaction() as session:
            done = session.execute(
                waiting.values(
                    state="released", reason=reason, moved=True, question=None, updated_at=self._now(session)
                )
            )
            return bool(done.rowcount)  # type: ignore[attr-defined]  # an update's result has it

    def ask_stop(self, claim: Claim, reason: str) -> None:
        """Tell a run to stop; it hears it with its next heartbeat."""
        with self._transaction() as session:
            session.execute(self._mine(claim).where(ClaimTable.state.in_(HELD)).values(stop=reason))

    def requeue(self, claim: Claim, reason: str, *, only_expired: bool = False) -> bool:
        """Take the ticket from a holder that is gone: new token, waiting again, one infra fault. Once per token (SM11)."""
        with self._transaction() as session:
            now, row = self._now(session), self._row(session, claim.board, claim.ticket)
            if (
                row is None
                or row.token != claim.token
                or row.state not in HELD
                or (only_expired and row.lease_until > now)
            ):
                return False
            row.token += 1
            row.state, row.reason, row.due_at = "retry-queued", redact(reason), now
            row.infra_faults += row.started_at is not None
            row.stop = row.started_at = row.flow_run = None
            row.updated_at = now
            return True

    def see(self, claim: Claim, ticket_state: str, assignee: str | None = None) -> None:
        """Remember the ticket's state on the board, which caps by state count (SM5), and, where it is named, whose it is."""
        seen = {"ticket_state": ticket_state} | ({} if assignee is None else {"assignee": assignee})
        with self._transaction() as session:
            session.execute(self._mine(claim).values(**seen))

    def find(self, board: str, ticket: str) -> Claim | None:
        with self._transaction() as session:
            row = session.get(ClaimTable, (board, ticket))
            return Claim.model_validate(row) if row else None

    def held(self, board: str | None = None) -> list[Claim]:
        """What is claimed or running."""
        query = self._held()
        with self._transaction() as session:
            return self._read(session, query if board is None else query.where(ClaimTable.board == board))

    def in_state(self, *states: ClaimState) -> list[Claim]:
        with self._transaction() as session:
            return self._read(session, select(ClaimTable).where(ClaimTable.state.in_(states)))

    def with_keys(self, tickets: Sequence[str]) -> dict[str, list[Claim]]:
        """The claims on tickets of these keys, on any board and in whatever state, by key; one query."""
        found: dict[str, list[Claim]] = {}
        if tickets:
            query = select(ClaimTable).where(ClaimTable.ticket == func.any(list(tickets)))
            with self._transaction() as session:
                for claim in self._read(session, query):
                    found.setdefault(claim.ticket, []).append(claim)
        return found

    def expired(self) -> list[Claim]:
        """Held claims whose lease ended."""
        with self._transaction() as session:
            return self._read(session, self._held().where(ClaimTable.lease_until <= self._now(session)))

    def now(self) -> datetime:
        """The clock that leases are measured with."""
        with self._transaction() as session:
            return self._now(session)

    def _end(
        self,
        claim: Claim,
        *,
        state: ClaimState,
        reason: str,
        delay: float = 0,
        counter: str | None = None,
        **values: Any,
    ) -> None:
        with self._transaction() as session:
            row, now = self._own_row(session, claim), self._now(session)
            row.state, row.reason, row.updated_at = state, redact(reason), now
            row.due_at = now + timedelta(seconds=delay) if state == "retry-queued" else None
            row.stop = row.started_at = None
            if counter is not None:
                setattr(row, counter, getattr(row, counter) + 1)
            for name, value in values.items():
                setattr(row, name, value)

    def _take(
        self,
        session: Session,
        row: ClaimTable | None,
        ticket: Ticket,
        now: datetime,
        holder: str,
        machine: str,
        node: str,
        repository: str,
        lease_seconds: float,
    ) -> Claim:
        """A new holder with a new token. Work on a changed text starts counting anew."""
        values: dict[str, Any] = {
            "state": "claimed",
            "token": row.token + 1 if row else 1,
            "holder": holder,
            "machine": machine,
            "node": node,
            "repository": repository,
            "ticket_state": ticket.state,
            "assignee": None,
            "content": ticket.content,
            "claimed_at": now,
            "lease_until": now + timedelta(seconds=lease_seconds),
            "lease_seconds": lease_seconds,
            "flow_run": None,
            "due_at": None,
            "stop": None,
            "question": None,
            "moved": False,
            "started_at": None,
            "progress_at": None,
            "updated_at": now,
        }
        if row is not None and (row.state == "released" or row.content != ticket.content):
            values |= dict.fromkeys(COUNTERS, 0)
        if row is not None and row.state == "running":
            values["infra_faults"] = row.infra_faults + 1
        new = insert(ClaimTable).values(board=ticket.board, ticket=ticket.key, **values)
        taken = new.on_conflict_do_update(index_elements=["board", "ticket"], set_=values).returning(ClaimTable)
        claimed = session.scalars(taken, execution_options={"populate_existing": True}).one()
        return Claim.model_validate(claimed)

    def _refuse_twin(self, session: Session, ticket: Ticket, now: datetime) -> None:
        twins = self._held().where(ClaimTable.ticket == ticket.key, ClaimTable.board != ticket.board)
        for twin in self._read(session, twins.where(ClaimTable.lease_until > now)):
            raise CapacityUnavailable(
                f"the ticket {ticket.key!r} of the board {twin.board!r} is being worked on, and a key names one branch; "
                "wait for it to end, or give one of them another key"
            )

    def _own_row(self, session: Session, claim: Claim) -> ClaimTable:
        row = self._row(session, claim.board, claim.ticket)
        if row is None or row.token != claim.token or row.state not in HELD:
            raise _fenced(claim.board, claim.ticket, claim.token, row)
        return row

    def _row(self, session: Session, board: str, ticket: str) -> ClaimTable | None:
        return session.get(ClaimTable, (board, ticket), with_for_update=True)

    def _mine(self, claim: Claim) -> Any:
        return update(ClaimTable).where(
            ClaimTable.board == claim.board, ClaimTable.ticket == claim.ticket, ClaimTable.token == claim.token
        )

    def _held(self) -> Select[tuple[ClaimTable]]:
        return select(ClaimTable).where(ClaimTable.state.in_(HELD))

    def _read(self, session: Session, query: Select[tuple[ClaimTable]]) -> list[Claim]:
        return [Claim.model_validate(row) for row in session.scalars(query.order_by(ClaimTable.updated_at))]


def is_claimable(claim: Claim | ClaimTable, ticket: Ticket, now: datetime) -> bool:
    """Whether a ticket with this claim may be claimed now: its lease ended, its time has come, or a person changed it."""
    match claim.state:
        case "claimed" | "running":
            return claim.lease_until <= now
        case "retry-queued":
            return claim.due_at is None or claim.due_at <= now
        case "released":
            return claim.moved or claim.content != ticket.content
        case _:
            return claim.question is None and claim.content != ticket.content


def _is(claim: Claim, row: ClaimTable | None) -> bool:
    return row is not None and (claim.board, claim.ticket) == (row.board, row.ticket)


def _fenced(board: str, ticket: str, token: int, row: ClaimTable | None) -> FencedOff:
    now = f"token {row.token}, {row.state}, node {row.node!r}" if row else "no claim"
    return FencedOff(f"this run (token {token}) does not hold ticket {ticket!r} of board {board!r} any more ({now})")
