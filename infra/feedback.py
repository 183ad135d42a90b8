"""What runs were like and how they ended, and the day's calibration: the ledger of the feedback loop (L2).

The traits of a run are noted once, when its plan is made; a calibration is kept once per day, whoever makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, false, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.ledger import AttemptOutcome, AttemptTable
from infra.sections import Level

_LIFTING_LOCK = 7_203_775
_CALIBRATION_LOCK = 7_203_776
SHARE_DAYS = 30
"""`max_strong_share` is of the runs of so many days."""


class RunTable(Table):
    """The traits of one attempt. `lifted_by` says what of learning put its coder on the strong level; null: nothing did."""

    __tablename__ = "run_traits"
    __table_args__ = (Index(None, "at"),)
    attempt: Mapped[int] = mapped_column(ForeignKey(AttemptTable.id), primary_key=True, autoincrement=False)
    intent: Mapped[str]
    effort: Mapped[int]
    level: Mapped[str]
    model: Mapped[str]
    node: Mapped[str]
    repository: Mapped[str]
    confidence: Mapped[float]
    lifted_by: Mapped[str | None]
    why: Mapped[str]
    at: Mapped[datetime]


class CalibrationTable(Table):
    """What one day's calibration found, as JSON. `told`: people were told what was new in it."""

    __tablename__ = "calibrations"
    day: Mapped[date] = mapped_column(primary_key=True)
    report: Mapped[dict[str, Any]]
    told: Mapped[bool] = mapped_column(server_default=false())


class Traits(Row):
    """What a run was like. `model` is the name of the level that coded (`Router.name`), or the agent's."""

    attempt: int
    intent: str
    effort: int
    level: Level
    model: str
    node: str
    repository: str
    confidence: float
    """That it would be accepted, as it was known when it began."""
    lifted_by: Literal["route", "confidence"] | None = None
    why: str = ""


class Run(Row):
    """A run that ended: its traits and its end."""

    traits: Traits
    outcome: AttemptOutcome
    failure_class: str | None
    ended_at: datetime


class Feedback:
    """Reads and writes of traits and calibrations. All methods block and raise Unreachable when the database does not
    answer. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._clock = clock

    def note(self, plain: Traits, lifted: Traits | None = None, max_share: float = 0.0) -> Traits:
        """Keep what a run is like, and return what is kept: the first note of an attempt stays.

        `lifted` is kept instead of `plain` while, with it, at most `max_share` of the last days' runs were lifted.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_LIFTING_LOCK)))
            kept = session.get(RunTable, plain.attempt)
            if kept is None:
                at = now(session, self._clock)
                chosen = lifted if lifted is not None and _has_room(session, at, max_share) else plain
                kept = RunTable(**chosen.model_dump(), at=at)
                session.add(kept)
            return Traits.model_validate(kept)

    def calibrated(
        self, days: int, make: Callable[[list[Run], dict[str, Any] | None, datetime], dict[str, Any]], *, keep: bool
    ) -> dict[str, Any]:
        """Today's calibration (UTC): the one that is kept, else what `make` makes of it, which is kept then.

        `make` gets the runs that ended within `days`, oldest first, the newest calibration of an earlier day, and the time.
        Without `keep` it is made anew and nothing is written. Several at once wait for each other and get the same.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_CALIBRATION_LOCK)))
            at = now(session, self._clock).astimezone(UTC)
            kept = session.get(CalibrationTable, at.date())
            if kept is not None and keep:
                return kept.report
            report = make(_runs(session, at - timedelta(days=days)), _newest(session, before=at.date()), at)
            if keep:
                session.add(CalibrationTable(day=at.date(), report=report))
            return report

    def newest(self) -> dict[str, Any] | None:
        """The newest calibration that is kept."""
        with self._transaction() as session:
            return _newest(session)

    def untold(self, day: date) -> bool:
        """Whether people still have to be told what was new on that day."""
        with self._transaction() as session:
            kept = session.get(CalibrationTable, day)
            return kept is not None and not kept.told

    def tell(self, day: date) -> None:
        """Remember that people were told."""
        with self._transaction() as session:
            session.execute(update(CalibrationTable).where(CalibrationTable.day == day).values(told=True))


def _has_room(session: Session, at: datetime, max_share: float) -> bool:
    recent = select(func.count(), func.count(RunTable.lifted_by)).where(RunTable.at > at - timedelta(days=SHARE_DAYS))
    runs, lifted = session.execute(recent).one()
    return bool(lifted + 1 <= max_share * (runs + 1))


def _runs(session: Session, since: datetime) -> list[Run]:
    query = (
        select(RunTable, AttemptTable)
        .join(AttemptTable, AttemptTable.id == RunTable.attempt)
        .where(AttemptTable.ended_at > since)
        .order_by(AttemptTable.ended_at, AttemptTable.id)
    )
    return [
        Run.model_validate(
            {
                "traits": Traits.model_validate(traits),
                "outcome": attempt.outcome,
                "failure_class": attempt.failure_class,
                "ended_at": attempt.ended_at,
            }
        )
        for traits, attempt in session.execute(query)
    ]


def _newest(session: Session, before: date | None = None) -> dict[str, Any] | None:
    query = select(CalibrationTable.report).order_by(CalibrationTable.day.desc()).limit(1)
    return session.scalars(query if before is None else query.where(CalibrationTable.day < before)).first()
