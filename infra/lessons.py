"""Lessons: failures that attempts ended in, the corrections they make, and which attempts were shown which (L1).

Three equal failures of one kind of work make a correction. Everything here may be repeated and counts once: `attempt` is a
text that stays the same when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import CheckConstraint, Identity, Index, UniqueConstraint, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Database, Row, Table
from infra.errors import ConfigError
from infra.llm import Frozen
from infra.redaction import redact

EQUAL_FAILURES = 3
"""Attempts of one kind with the same failure that make a correction."""
MOST_ACTIVE = 3
"""Corrections of one kind of work that a prompt may show."""
PROMOTED_AFTER = 5
RETIRED_AFTER = 2
"""Attempts that failed in the same way although they were told, when no more than that went well (`Lessons.settle`)."""
MESSAGE_CHARS = 240
_LOCK = 7_203_788

State = Literal["active", "evicted", "retired"]


class SightingTable(Table):
    """That an attempt failed in one way. `remedy` is what was added before the same attempt was accepted."""

    __tablename__ = "sightings"
    __table_args__ = (Index(None, "repository", "intent", "effort", "pattern"),)
    attempt: Mapped[str] = mapped_column(primary_key=True)
    pattern: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    intent: Mapped[str]
    effort: Mapped[int]
    message: Mapped[str]
    remedy: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class CorrectionTable(Table):
    """What attempts of one kind are told. `ok` and `failed` count attempts that were told and went well, or failed so again."""

    __tablename__ = "corrections"
    __table_args__ = (
        UniqueConstraint("repository", "intent", "effort", "pattern"),
        CheckConstraint("state in ('active', 'evicted', 'retired')", name="state_known"),
    )
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    repository: Mapped[str]
    intent: Mapped[str]
    effort: Mapped[int]
    pattern: Mapped[str]
    message: Mapped[str]
    remedy: Mapped[str] = mapped_column(server_default="")
    seen: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="active")
    reason: Mapped[str] = mapped_column(server_default="")
    applied: Mapped[int] = mapped_column(server_default="0")
    ok: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    promoted_at: Mapped[datetime | None]
    told_at: Mapped[datetime | None]


class BriefingTable(Table):
    """What one attempt was told, also when that was nothing; `outcome` once it ended."""

    __tablename__ = "briefings"
    attempt: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    intent: Mapped[str]
    effort: Mapped[int]
    shown: Mapped[list[dict[str, Any]]] = mapped_column(JSONB())
    outcome: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Kind(Frozen):
    """What failures are compared within. A failure names tests and rules of one repository, so it stays there."""

    repository: str
    intent: str
    effort: int = Field(ge=1, le=5)


class Failure(Frozen):
    """One way in which an attempt failed: equal patterns are the same failure, `message` says it for people and models."""

    pattern: str
    message: str


class Correction(Row):
    """A correction as it was read. `seen` counts the attempts that failed so, `applied` those that were told.

    `told_at` is when shared memory and corpus had it, after `promoted_at`; empty again until they know that it is retired.
    """

    id: int
    repository: str
    intent: str
    effort: int
    pattern: str
    message: str
    remedy: str = ""
    seen: int
    state: State = "active"
    reason: str = ""
    """Why it was retired."""
    applied: int = 0
    ok: int = 0
    failed: int = 0
    created_at: datetime
    promoted_at: datetime | None = None
    told_at: datetime | None = None


class Shown(Frozen):
    """A correction in the words in which an attempt was told it."""

    correction: int
    text: str


class Lessons:
    """Reads and writes of the lessons. All methods block and raise Unreachable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction

    def note(self, attempt: str, kind: Kind, failures: Sequence[Failure]) -> None:
        """An attempt failed in these ways. The third attempt with the same one makes a correction, and one that was
        evicted comes back; then the weakest of more than `MOST_ACTIVE` goes.
        """
        with self._transaction() as session:
            _lock(session, kind)
            for failure in failures:
                if _is_new(session, attempt, kind, failure):
                    _correct(session, kind, failure)

    def brief(
        self, attempt: str, kind: Kind, words: Callable[[Sequence[Correction]], Sequence[Shown]]
    ) -> tuple[Shown, ...]:
        """What this attempt is told: at its first call `words` of the active corrections, best first, ever after the same."""
        with self._transaction() as session:
            told = session.get(BriefingTable, attempt)
            if told is None:
                _lock(session, kind)  # before rows that `note` and `settle` change in another order
                shown = words([Correction.model_validate(row) for row in session.scalars(_active(kind))])
                told = _briefed(session, attempt, kind, shown)
            return tuple(Shown.model_validate(each) for each in told.shown)

    def settle(self, attempt: str, *, accepted: bool, remedy: str = "") -> None:
        """How a briefed attempt ended, once. A correction it was told counts as `failed` when the same failure was seen
        again, whatever the end, and as `ok` when it was accepted without; else it says nothing.

        Promoted after `PROMOTED_AFTER` that went well. Retired after `RETIRED_AFTER` failures, unless more went well.
        """
        with self._transaction() as session:
            told = session.get(BriefingTable, attempt, with_for_update=True)
            if told is None or told.outcome is not None:
                return
            _lock(session, Kind(repository=told.repository, intent=told.intent, effort=told.effort))
            told.outcome = "accepted" if accepted else "failed"
            again = set(session.scalars(select(SightingTable.pattern).where(SightingTable.attempt == attempt)))
            for each in told.shown:
                row = session.get(CorrectionTable, each["correction"], with_for_update=True)
                if row is not None:
                    _count(row, failed_again=row.pattern in again, accepted=accepted)
            if accepted and remedy:
                _remember_remedy(session, attempt, told, _clean(remedy))

    def seen_in(self, attempt: str) -> tuple[str, ...]:
        """The patterns of the failures that an attempt ran into."""
        with self._transaction() as session:
            return tuple(session.scalars(select(SightingTable.pattern).where(SightingTable.attempt == attempt)))

    def untold(self) -> list[Correction]:
        """Promoted ones that shared memory and corpus do not have yet, or do not know to be retired."""
        wanted = CorrectionTable.promoted_at.is_not(None) & CorrectionTable.told_at.is_(None)
        with self._transaction() as session:
            return [Correction.model_validate(row) for row in session.scalars(select(CorrectionTable).where(wanted))]

    def mark_told(self, correction: Correction) -> None:
        """They know it as it was read; nothing where it was retired since."""
        retired = CorrectionTable.state == "retired"
        same = (CorrectionTable.id == correction.id, retired if correction.state == "retired" else ~retired)
        with self._transaction() as session:
            session.execute(update(CorrectionTable).where(*same).values(told_at=func.now()))

    def corrections(self, repository: str | None = None) -> list[Correction]:
        """All of them, also those that are no longer shown, of one repository or of all; newest first."""
        query = select(CorrectionTable).order_by(CorrectionTable.id.desc())
        if repository is not None:
            query = query.where(CorrectionTable.repository == repository)
        with self._transaction() as session:
            return [Correction.model_validate(row) for row in session.scalars(query)]

    def find(self, correction: int) -> Correction:
        """Raises ConfigError when there is none."""
        with self._transaction() as session:
            return Correction.model_validate(_existing(session, correction))

    def retire(self, correction: int, reason: str) -> Correction:
        """Show it no more, and have it `untold` again. Raises ConfigError when there is none."""
        with self._transaction() as session:
            row = _existing(session, correction, for_update=True)
            _retire(row, redact(reason))
            return Correction.model_validate(row)


def _lock(session: Session, kind: Kind) -> None:
    """One at a time for each kind of work, so that the third failure is the third for exactly one process."""
    place = func.hashtextextended(f"{kind.repository}\n{kind.intent}\n{kind.effort}", _LOCK)
    session.execute(select(func.pg_advisory_xact_lock(place)))


def _is_new(session: Session, attempt: str, kind: Kind, failure: Failure) -> bool:
    row = {"attempt": attempt, "pattern": failure.pattern, "message": _clean(failure.message), **kind.model_dump()}
    new = insert(SightingTable).values(**row).on_conflict_do_nothing().returning(SightingTable.attempt)
    return session.scalar(new) is not None


def _correct(session: Session, kind: Kind, failure: Failure) -> None:
    """Bring the correction for a failure up to date; make it, or call it back, where there are enough failures."""
    same = (SightingTable.pattern == failure.pattern, *_of(SightingTable, kind))
    seen = session.scalar(select(func.count()).select_from(SightingTable).where(*same)) or 0
    known = session.scalar(
        select(CorrectionTable).where(CorrectionTable.pattern == failure.pattern, *_of(CorrectionTable, kind))
    )
    if known is None and seen < EQUAL_FAILURES:
        return
    if known is None:
        known = CorrectionTable(pattern=failure.pattern, state="active", **kind.model_dump())
        session.add(known)
    known.seen, known.message = seen, _clean(failure.message)
    remedies = select(SightingTable.remedy).where(*same, SightingTable.remedy != "").order_by(SightingTable.at.desc())
    known.remedy = session.scalar(remedies.limit(1)) or ""
    known.state = "active" if known.state == "evicted" else known.state
    session.flush()
    _evict(session, kind, known.id)


def _evict(session: Session, kind: Kind, newest: int) -> None:
    """Of too many the one with the least success goes, the oldest of equals; never the one that just came."""
    active = session.scalars(_active(kind)).all()
    others = [row for row in active if row.id != newest]
    if len(active) > MOST_ACTIVE:
        min(others, key=lambda row: (row.ok - row.failed, row.id)).state = "evicted"


def _active(kind: Kind) -> Any:
    """The query for what may be shown, the most successful first, the newest of equals."""
    query = select(CorrectionTable).where(CorrectionTable.state == "active", *_of(CorrectionTable, kind))
    return query.order_by((CorrectionTable.ok - CorrectionTable.failed).desc(), CorrectionTable.id.desc())


def _of(table: type[SightingTable | CorrectionTable], kind: Kind) -> tuple[Any, ...]:
    return (table.repository == kind.repository, table.intent == kind.intent, table.effort == kind.effort)


def _briefed(session: Session, attempt: str, kind: Kind, shown: Sequence[Shown]) -> BriefingTable:
    """The briefing that is stored: this one, or that of another process which was quicker."""
    values = {"attempt": attempt, "shown": [each.model_dump() for each in shown], **kind.model_dump()}
    new = insert(BriefingTable).values(**values).on_conflict_do_nothing().returning(BriefingTable.attempt)
    if session.scalar(new) is not None and shown:
        ids = [each.correction for each in shown]
        counted = update(CorrectionTable).where(CorrectionTable.id.in_(ids))
        session.execute(counted.values(applied=CorrectionTable.applied + 1))
    return session.get_one(BriefingTable, attempt)


def _count(row: CorrectionTable, *, failed_again: bool, accepted: bool) -> None:
    if failed_again:
        row.failed += 1
        if row.failed >= RETIRED_AFTER and row.failed >= row.ok and row.state != "retired":
            _retire(row, f"{row.failed} attempts that were told failed so again, {row.ok} went well")
    elif accepted:
        row.ok += 1
        if row.ok >= PROMOTED_AFTER and row.promoted_at is None and row.state != "retired":
            row.promoted_at = func.now()  # the database's clock


def _retire(row: CorrectionTable, reason: str) -> None:
    """Once: what was told of it has to be taken back."""
    if row.state != "retired":
        row.told_at = None
    row.state, row.reason = "retired", reason


def _remember_remedy(session: Session, attempt: str, told: BriefingTable, remedy: str) -> None:
    """What helped in the end, for the corrections of all that this attempt had run into."""
    session.execute(update(SightingTable).where(SightingTable.attempt == attempt).values(remedy=remedy))
    patterns = select(SightingTable.pattern).where(SightingTable.attempt == attempt)
    kind = Kind(repository=told.repository, intent=told.intent, effort=told.effort)
    mine = update(CorrectionTable).where(CorrectionTable.pattern.in_(patterns), *_of(CorrectionTable, kind))
    session.execute(mine.values(remedy=remedy))


def _existing(session: Session, correction: int, *, for_update: bool = False) -> CorrectionTable:
    is_number = correction.bit_length() < 64  # of the database
    row = session.get(CorrectionTable, correction, with_for_update=for_update) if is_number else None
    if row is None:
        raise ConfigError(f"there is no correction {correction}; `darkfactory lessons list` shows all")
    return row


def _clean(message: str) -> str:
    """One line without secrets and control characters, of bounded length."""
    plain = "".join(c if c.isprintable() else " " for c in message)
    return redact(" ".join(plain.split()))[:MESSAGE_CHARS]
