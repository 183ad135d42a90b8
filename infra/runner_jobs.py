"""Work units on GitHub Actions: which were started, and how much of the allowance they used.

A job takes the most it may use from the allowance when it begins, and gives back what it did not use when it ends, so that
no number of processes can pass a cap together.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from sqlalchemy import CheckConstraint, Index, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.errors import CapacityUnavailable
from infra.llm import Frozen
from infra.redaction import redact
from infra.sections import ActionsSection

JobState = Literal["open", "done", "failed"]
_LOCK = 7_203_785


class RunnerJobTable(Table):
    """One unit. `minutes` and `requests` are the most it may use while it is `open`, and what it used after that."""

    __tablename__ = "runner_jobs"
    __table_args__ = (
        CheckConstraint("state in ('open', 'done', 'failed')", name="state_known"),
        Index(None, "project", "reserved_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    board: Mapped[str]
    ticket: Mapped[str]
    state: Mapped[str]
    run: Mapped[int | None]
    minutes: Mapped[int]
    requests: Mapped[int]
    reason: Mapped[str] = mapped_column(server_default="")
    reserved_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class RunnerJob(Row):
    """A unit's job. `run` is GitHub's number of the run; None: it was not started, or nobody lived to write it down."""

    id: str
    project: str
    board: str
    ticket: str
    state: JobState
    run: int | None = None
    minutes: int
    requests: int
    reason: str = ""
    reserved_at: datetime
    ended_at: datetime | None = None


class Used(Frozen):
    """What a project's jobs hold and used: jobs that are open, minutes of this month, model requests of this day (UTC)."""

    open: int
    minutes: int
    requests: int


class NoRoom(CapacityUnavailable):
    """A cap of the section `actions` is reached. `reset_at` is when it opens again; None: when a job ends."""

    def __init__(self, message: str, reset_at: datetime | None) -> None:
        super().__init__(message)
        self.reset_at = reset_at


class RunnerJobs:
    """Reads and changes of the jobs. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._now = partial(now, clock=clock)

    def reserve(
        self, id: str, section: ActionsSection, *, board: str, ticket: str, minutes: int, requests: int
    ) -> tuple[RunnerJob, bool]:
        """The job of the unit, and whether it is new: one that is there already is handed on as it stands.

        Raises NoRoom. One process at a time decides, so the caps hold for any number of them.
        """
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            if row := session.get(RunnerJobTable, id):
                return RunnerJob.model_validate(row), False
            time = self._now(session)
            _check_room(_used(session, section.project, time), section, time, minutes, requests)
            row = RunnerJobTable(
                id=id, project=section.project, board=board, ticket=ticket, state="open", run=None, minutes=minutes,
                requests=requests, reason="", reserved_at=time, ended_at=None,
            )  # fmt: skip
            session.add(row)
            session.flush()
            return RunnerJob.model_validate(row), True

    def find(self, id: str) -> RunnerJob | None:
        """The job of the unit, or None when it never had one."""
        with self._transaction() as session:
            row = session.get(RunnerJobTable, id)
            return RunnerJob.model_validate(row) if row else None

    def started(self, id: str, run: int) -> None:
        """Note GitHub's number of the run."""
        with self._transaction() as session:
            session.get_one(RunnerJobTable, id, with_for_update=True).run = run

    def settle(
        self, id: str, state: Literal["done", "failed"], *, minutes: int | None, requests: int | None, reason: str = ""
    ) -> None:
        """End the job, once. None: it is not known how much it used, so all that it held counts as used."""
        with self._transaction() as session:
            row = session.get_one(RunnerJobTable, id, with_for_update=True)
            if row.state == "open":
                row.state, row.reason, row.ended_at = state, redact(reason)[:500], self._now(session)
                row.minutes = row.minutes if minutes is None else minutes
                row.requests = row.requests if requests is None else requests

    def check_room(self, section: ActionsSection, *, minutes: int, requests: int) -> None:
        """Raises NoRoom when a job could not begin now."""
        with self._transaction() as session:
            time = self._now(session)
            _check_room(_used(session, section.project, time), section, time, minutes, requests)

    def used(self, project: str) -> Used:
        with self._transaction() as session:
            return _used(session, project, self._now(session))

    def open_jobs(self) -> list[RunnerJob]:
        """All jobs that nobody ended yet, oldest first."""
        with self._transaction() as session:
            found = select(RunnerJobTable).where(RunnerJobTable.state == "open").order_by(RunnerJobTable.reserved_at)
            return [RunnerJob.model_validate(row) for row in session.scalars(found)]

    def now(self) -> datetime:
        """The clock that `reserved_at` is read from."""
        with self._transaction() as session:
            return self._now(session)


def _used(session: Session, project: str, time: datetime) -> Used:
    table, (day, month) = RunnerJobTable, _periods(time)
    mine = table.project == project

    def total(column: Mapped[int], since: datetime) -> int:
        """A job that is still open counts in every period."""
        counted = mine & ((table.reserved_at >= since) | (table.state == "open"))
        return int(session.scalar(select(func.coalesce(func.sum(column), 0)).where(counted)) or 0)

    jobs = session.scalar(select(func.count()).where(mine & (table.state == "open"))) or 0
    return Used(open=jobs, minutes=total(table.minutes, month), requests=total(table.requests, day))


def _check_room(used: Used, section: ActionsSection, time: datetime, minutes: int, requests: int) -> None:
    day, month = _periods(time)
    if used.open >= section.parallel:
        raise NoRoom(f"{used.open} of {section.parallel} runners of {section.project!r} are busy", None)
    if used.minutes + minutes > section.minutes_per_month:
        said = (
            f"{used.minutes} of {section.minutes_per_month} minutes of this month are used, a unit may take {minutes}"
        )
        raise NoRoom(said, (month + timedelta(days=32)).replace(day=1))
    if used.requests + requests > section.requests_per_day:
        said = (
            f"{used.requests} of {section.requests_per_day} requests of this day are used, a unit may take {requests}"
        )
        raise NoRoom(said, day + timedelta(days=1))


def _periods(time: datetime) -> tuple[datetime, datetime]:
    """Begin of the day and of the month, in UTC."""
    day = time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day, day.replace(day=1)
