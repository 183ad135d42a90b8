"""What housekeeping found and the tickets it made of it: each finding becomes at most one ticket, ever (W1).

A finding is known by its fingerprint, which no line number is part of. The intention to make a ticket is written before the
ticket and counts against the caps, so that a killed run neither makes two nor forgets one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime
from sqlalchemy import ARRAY, CheckConstraint, ColumnElement, Index, Text, any_, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.ledger import PullRequestTable, TicketTable
from infra.llm import Frozen
from infra.redaction import redact

_LOCK = 7_203_791
_CREATE_SECONDS = 120
"""Longest creation of one ticket; a process that is suspended longer loses its connection, and with it the right."""

State = Literal["seen", "intended", "created", "duplicate"]


class FindingTable(Table):
    """One finding. `draft` is the `Draft` its ticket is made of."""

    __tablename__ = "findings"
    __table_args__ = (
        CheckConstraint("state in ('seen', 'intended', 'created', 'duplicate')", name="state_known"),
        Index(None, "chore", "intended_at"),
    )
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    chore: Mapped[str]
    kind: Mapped[str]
    title: Mapped[str]
    state: Mapped[str]
    board: Mapped[str | None]
    ticket: Mapped[str | None]
    draft: Mapped[dict[str, Any]]
    seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    intended_at: Mapped[datetime | None]


class ChoreRunTable(Table):
    """The last run of a chore in a repository."""

    __tablename__ = "chore_runs"
    chore: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    note: Mapped[str] = mapped_column(server_default="")


class ChoreMarkTable(Table):
    """What a chore that makes no tickets dealt with last, by subject."""

    __tablename__ = "chore_marks"
    __table_args__ = (Index(None, "chore", "at"),)
    chore: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[str]
    at: Mapped[datetime]


class Draft(Frozen):
    """The text of a ticket that is not made yet."""

    title: str
    body: str
    labels: tuple[str, ...] = ()
    priority: int | None = None


class Finding(Row):
    """A finding as it was read."""

    fingerprint: str
    repository: str
    chore: str
    title: str
    state: State
    board: str | None = None
    ticket: str | None = None
    draft: Draft

    @property
    def marker(self) -> str:
        """What the board knows the ticket by, so that creating it twice is creating it once."""
        return f"housekeeping-{self.fingerprint}"


class Merged(Frozen):
    """A merged pull request of the factory."""

    ticket: str
    title: str
    url: str
    at: AwareDatetime


class ChoreRun(Row):
    """`counts` has the names of `Counts`."""

    chore: str
    repository: str
    started_at: datetime
    ended_at: datetime | None = None
    counts: dict[str, int] = {}
    note: str = ""


class Sorted(Frozen):
    """What became of findings: `intended` are to be made into tickets now, those of killed runs first."""

    intended: tuple[Finding, ...]
    known: int
    capped: int


def fingerprint(repository: str, kind: str, path: str, subject: str) -> str:
    """16 hex digits for one thing that is wrong at one place. `subject` names it without line numbers."""
    return hashlib.sha256("\0".join((repository, kind, path, subject)).encode("utf-8", "replace")).hexdigest()[:16]


class Housekeeping:
    """Reads and writes of findings, runs and marks. All methods block and raise Unreachable when the database does not answer."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._clock = clock

    # ---- findings

    def known(self, fingerprints: Sequence[str]) -> set[str]:
        """Those of the fingerprints that have a ticket, are about to get one, or need none."""
        query = select(FindingTable.fingerprint).where(
            FindingTable.fingerprint == any_(literal(list(fingerprints), ARRAY(Text))), FindingTable.state != "seen"
        )
        with self._transaction() as session:
            return set(session.scalars(query))

    def sort(
        self,
        chore: str,
        repository: str,
        board: str,
        found: Sequence[tuple[str, str, Draft]],
        *,
        per_chore: int,
        overall: int,
    ) -> Sorted:
        """Write down which findings (fingerprint, kind, draft; the worst first) become tickets, as far as today's caps go.

        One caller at a time, on all machines: caps are never passed. What a killed run intended counts as of its own day.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            at = now(session, self._clock)
            rows = {each: session.get(FindingTable, each) for each, _, _ in found}
            room = self._room(session, at, chore, per_chore, overall)
            known = capped = 0
            for each, kind, draft in found:
                row = rows[each]
                if row is not None and row.state != "seen":
                    row.last_seen_at, known = at, known + 1
                    continue
                state: State = "intended" if room > 0 else "seen"
                room, capped = (room - 1, capped) if room > 0 else (room, capped + 1)
                self._put(session, each, at, chore=chore, repository=repository, board=board, kind=kind, state=state, draft=draft)  # fmt: skip
            session.flush()
            return Sorted(intended=self._intended(session, chore, repository), known=known, capped=capped)

    def _intended(self, session: Session, chore: str, repository: str) -> tuple[Finding, ...]:
        mine = select(FindingTable).where(
            FindingTable.chore == chore, FindingTable.repository == repository, FindingTable.state == "intended"
        )
        rows = session.scalars(mine.order_by(FindingTable.intended_at, FindingTable.fingerprint))
        return tuple(Finding.model_validate(row) for row in rows)

    def _put(self, session: Session, each: str, at: datetime, *, draft: Draft, **named: Any) -> None:
        plain = draft.model_dump(mode="json")
        values = {**named, "title": redact(draft.title), "draft": plain, "last_seen_at": at}
        values["intended_at"] = at if named["state"] == "intended" else None
        new = insert(FindingTable).values(fingerprint=each, seen_at=at, **values)
        session.execute(new.on_conflict_do_update(index_elements=["fingerprint"], set_=values))

    def _room(self, session: Session, at: datetime, chore: str, per_chore: int, overall: int) -> int:
        return min(
            per_chore - self._count(session, at, FindingTable.chore == chore), overall - self._count(session, at)
        )

    def _count(self, session: Session, at: datetime, *only: ColumnElement[bool]) -> int:
        """Tickets of the day (UTC) that `at` is in."""
        today = at.replace(hour=0, minute=0, second=0, microsecond=0)
        query = select(func.count()).select_from(FindingTable).where(FindingTable.intended_at >= today, *only)
        return session.scalar(query) or 0

    def made_today(self) -> dict[str, int]:
        """Tickets of today (UTC) by chore."""
        with self._transaction() as session:
            today = now(session, self._clock).replace(hour=0, minute=0, second=0, microsecond=0)
            query = select(FindingTable.chore, func.count()).where(FindingTable.intended_at >= today)
            return {row[0]: row[1] for row in session.execute(query.group_by(FindingTable.chore))}

    def pass_over(
        self, chore: str, repository: str, each: str, kind: str, draft: Draft, board: str, ticket: str
    ) -> None:
        """A ticket of somebody else says the same: this finding needs none, ever."""
        with self._transaction() as session:
            at = now(session, self._clock)
            self._put(session, each, at, chore=chore, repository=repository, board=board, kind=kind, state="duplicate", draft=draft)  # fmt: skip
            session.execute(update(FindingTable).where(FindingTable.fingerprint == each).values(ticket=ticket))

    @contextmanager
    def alone(self, each: str) -> Iterator[Finding | None]:
        """Make one ticket while nobody else makes it: a second caller waits here, and then gets None."""
        with self._transaction() as session:
            session.execute(text(f"set local idle_in_transaction_session_timeout = '{_CREATE_SECONDS}s'"))
            session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(each, _LOCK))))
            row = session.get(FindingTable, each)
            found = Finding.model_validate(row) if row is not None and row.state == "intended" else None
            session.expunge_all()
            yield found

    def confirm(self, each: str, ticket: str) -> None:
        """The ticket is on the board."""
        with self._transaction() as session:
            mine = update(FindingTable).where(FindingTable.fingerprint == each)
            session.execute(mine.values(state="created", ticket=ticket))

    def tickets(self, board: str) -> set[str]:
        """Keys of all tickets that were made there."""
        query = select(FindingTable.ticket).where(FindingTable.board == board, FindingTable.state == "created")
        with self._transaction() as session:
            return {key for key in session.scalars(query) if key is not None}

    def made(self, chore: str, repository: str) -> dict[str, datetime]:
        """The tickets that a chore made of a repository, and when."""
        mine = (FindingTable.chore == chore) & (FindingTable.repository == repository)
        query = select(FindingTable.ticket, FindingTable.intended_at).where(mine, FindingTable.state == "created")
        with self._transaction() as session:
            return {ticket: at for ticket, at in session.execute(query) if ticket is not None and at is not None}

    def merged(self, repository: str) -> list[Merged]:
        """The factory's merged pull requests of a repository, the oldest first."""
        both = (PullRequestTable.board == TicketTable.board) & (PullRequestTable.ticket == TicketTable.key)
        query = (
            select(TicketTable.key, TicketTable.title, PullRequestTable.url, PullRequestTable.updated_at)
            .join(PullRequestTable, both)
            .where(TicketTable.repository == repository, PullRequestTable.state == "merged")
            .order_by(PullRequestTable.updated_at, TicketTable.key)
        )
        with self._transaction() as session:
            return [Merged(ticket=key, title=title, url=url, at=at) for key, title, url, at in session.execute(query)]

    # ---- runs

    def start(self, chore: str, repository: str) -> None:
        with self._transaction() as session:
            at = now(session, self._clock)
            new = insert(ChoreRunTable).values(chore=chore, repository=repository, started_at=at)
            again: dict[str, Any] = {"started_at": at, "ended_at": None, "note": "", "counts": {}}
            session.execute(new.on_conflict_do_update(index_elements=["chore", "repository"], set_=again))

    def end(self, chore: str, repository: str, counts: dict[str, int], note: str) -> None:
        mine = update(ChoreRunTable).where(ChoreRunTable.chore == chore, ChoreRunTable.repository == repository)
        with self._transaction() as session:
            at = now(session, self._clock)
            session.execute(mine.values(ended_at=at, counts=counts, note=redact(note)))

    def runs(self) -> list[ChoreRun]:
        """The last run of each chore in each repository."""
        with self._transaction() as session:
            rows = session.scalars(select(ChoreRunTable).order_by(ChoreRunTable.chore, ChoreRunTable.repository))
            return [ChoreRun.model_validate(row) for row in rows]

    def take_turn(self, chore: str, every_seconds: float) -> bool:
        """Whether this caller, of all machines, is the one that starts `chore` now; at most one in `every_seconds`."""
        with self._transaction() as session:
            at = now(session, self._clock)
            new = insert(ChoreRunTable).values(chore=chore, repository="", started_at=at)
            earlier = ChoreRunTable.started_at <= literal(at - timedelta(seconds=every_seconds))
            mine = new.on_conflict_do_update(
                index_elements=["chore", "repository"], set_={"started_at": at}, where=earlier
            )
            return session.scalar(mine.returning(ChoreRunTable.chore)) is not None

    # ---- marks

    def mark_of(self, chore: str, place: str, subject: str) -> str | None:
        """What was dealt with last about a subject (a head, a ticket) of a place (a repository, a board)."""
        with self._transaction() as session:
            row = session.get(ChoreMarkTable, (chore, place, subject))
            return row.mark if row is not None else None

    def mark(self, chore: str, place: str, subject: str, mark: str) -> None:
        with self._transaction() as session:
            at = now(session, self._clock)
            new = insert(ChoreMarkTable).values(chore=chore, place=place, subject=subject, mark=mark, at=at)
            session.execute(
                new.on_conflict_do_update(index_elements=["chore", "place", "subject"], set_={"mark": mark, "at": at})
            )

    def marked_today(self, chore: str) -> int:
        """Subjects that were dealt with today (UTC)."""
        with self._transaction() as session:
            today = now(session, self._clock).replace(hour=0, minute=0, second=0, microsecond=0)
            query = select(func.count()).select_from(ChoreMarkTable)
            return session.scalar(query.where(ChoreMarkTable.chore == chore, ChoreMarkTable.at >= today)) or 0
