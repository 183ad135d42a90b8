"""Stewardships: what the factory did about every pull request it looks after, so that nothing is done twice (T15).

One row per branch. A pull request that waits is a row here and nothing else: no process, no slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel
from sqlalchemy import CheckConstraint, Index, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, mapped_column

from infra.database import SCHEMA, Database, Row, Table
from infra.llm import Frozen
from infra.redaction import redact

Counter = Literal["ci_fixes", "review_rounds", "conflict_fixes"]
_LOCK = 7_203_793
_LOOK_SECONDS = 120
"""Longest look at one pull request; a steward that is suspended longer loses its connection, and with it the row."""


class StewardshipTable(Table):
    """One branch that is looked after. `handled` says per kind of work what was dealt with last."""

    __tablename__ = "stewardships"
    __table_args__ = (
        CheckConstraint("state in ('watched', 'parked', 'ended')", name="state_known"),
        Index(None, "board", "ticket"),
    )
    repository: Mapped[str] = mapped_column(primary_key=True)
    branch: Mapped[str] = mapped_column(primary_key=True)
    board: Mapped[str]
    ticket: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="watched")
    reason: Mapped[str] = mapped_column(server_default="")
    ci_fixes: Mapped[int] = mapped_column(server_default="0")
    review_rounds: Mapped[int] = mapped_column(server_default="0")
    conflict_fixes: Mapped[int] = mapped_column(server_default="0")
    extra: Mapped[int] = mapped_column(server_default="0")
    handled: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    wanted: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    journal: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    settled: Mapped[str | None]
    settled_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Handled(Frozen):
    """What was dealt with last, so that it is not dealt with again."""

    heard: AwareDatetime | None = None
    """Time of the newest words of a reviewer that were worked on."""
    qa: str | None = None
    """Head commit on which the QA command ran."""
    qa_exit: int | None = None
    refined: str | None = None
    """Whose wish for a refinement was fulfilled last."""
    label: bool = False
    """The label that asks for a refinement was seen, and is still there."""
    parked_head: str | None = None
    parked_heard: AwareDatetime | None = None
    """Head and newest words when it was parked: whatever comes after them grants another round."""


class Wanted(Frozen):
    """A refinement that somebody asked for. `instructions` is text from outside."""

    by: str
    instructions: str = ""


class Journal(Frozen):
    """A push that is under way, written before it: what to finish when it arrived, and to take back when it did not."""

    before: str
    after: str
    counter: Counter | None
    handled: Handled
    """What had been handled before it."""
    wanted: Wanted | None = None
    marker: str
    comment: str


class Stewardship(Row):
    """A branch that is looked after, as it was read. `extra` rounds were granted by people beyond the bounds."""

    repository: str
    branch: str
    board: str
    ticket: str
    state: Literal["watched", "parked", "ended"] = "watched"
    reason: str = ""
    ci_fixes: int = 0
    review_rounds: int = 0
    conflict_fixes: int = 0
    extra: int = 0
    handled: Handled = Handled()
    wanted: Wanted | None = None
    journal: Journal | None = None
    settled: str | None = None
    """What the pull request looked like when nothing was to do; while it looks the same it is not asked about."""
    settled_at: datetime | None = None


class Stewardships:
    """Reads and writes of the stewardships. All methods block and raise Unreachable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction

    def enrol(self) -> None:
        """Look after every pull request of the ledger that is open, and again after one that was opened again."""
        with self._transaction() as session:
            session.execute(text(_ENROL))

    def watch(self, repository: str, branch: str, board: str, ticket: str) -> None:
        """Look after a branch that the factory did not open; nothing when it is looked after already."""
        values = {"repository": repository, "branch": branch, "board": board, "ticket": ticket}
        new = insert(StewardshipTable).values(**values)
        with self._transaction() as session:
            session.execute(
                new.on_conflict_do_update(
                    index_elements=["repository", "branch"],
                    set_={"state": "watched"},
                    where=StewardshipTable.state == "ended",
                )
            )

    def watched(self, repository: str | None = None) -> list[Stewardship]:
        """What has not ended, of one repository or of all."""
        query = select(StewardshipTable).where(StewardshipTable.state != "ended")
        if repository is not None:
            query = query.where(StewardshipTable.repository == repository)
        with self._transaction() as session:
            found = session.scalars(query.order_by(StewardshipTable.repository, StewardshipTable.branch))
            return [Stewardship.model_validate(row) for row in found]

    def find(self, repository: str, branch: str) -> Stewardship | None:
        with self._transaction() as session:
            row = session.get(StewardshipTable, (repository, branch))
            return Stewardship.model_validate(row) if row else None

    def of_ticket(self, board: str, ticket: str) -> Stewardship | None:
        """The newest stewardship of a ticket."""
        query = select(StewardshipTable).where(StewardshipTable.board == board, StewardshipTable.ticket == ticket)
        with self._transaction() as session:
            row = session.scalars(query.order_by(StewardshipTable.updated_at.desc())).first()
            return Stewardship.model_validate(row) if row else None

    @contextmanager
    def alone(self, repository: str, branch: str) -> Iterator[Stewardship | None]:
        """Look at one pull request while nobody else does: a second steward waits here, and then sees what was done.

        Yields the row as it is now; None when it ended, or never was.
        """
        with self._transaction() as session:
            session.execute(text(f"set local idle_in_transaction_session_timeout = '{_LOOK_SECONDS}s'"))
            place = func.hashtextextended(f"{repository}\n{branch}", _LOCK)
            session.execute(select(func.pg_advisory_xact_lock(place)))
            row = session.get(StewardshipTable, (repository, branch))
            found = Stewardship.model_validate(row) if row and row.state != "ended" else None
            session.expunge_all()
            yield found

    def save(self, row: Stewardship, **changes: Any) -> Stewardship:
        """Change some fields of a row, all or none of them. Returns it as it is then."""
        if "reason" in changes:
            changes["reason"] = redact(changes["reason"])
        plain = {n: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for n, v in changes.items()}
        mine = update(StewardshipTable).where(
            StewardshipTable.repository == row.repository, StewardshipTable.branch == row.branch
        )
        with self._transaction() as session:
            session.execute(mine.values(**plain, updated_at=func.now()))
        return row.model_copy(update=changes)

    def grant(self, board: str, ticket: str) -> Stewardship | None:
        """One more round for a pull request that is parked; None when the ticket has none that is."""
        row = self.of_ticket(board, ticket)
        if row is None or row.state != "parked":
            return None
        return self.save(row, state="watched", extra=row.extra + 1, settled=None, reason="")


_ENROL = f"""
insert into {SCHEMA}.stewardships (repository, branch, board, ticket)
select ticket.repository, published.branch, published.board, published.ticket
from {SCHEMA}.pull_requests published
join {SCHEMA}.tickets ticket on ticket.board = published.board and ticket.key = published.ticket
where published.state = 'open'
on conflict (repository, branch) do update set state = 'watched', settled = null, updated_at = now()
where stewardships.state = 'ended'
"""  # noqa: S608 - only the constant schema is put in
