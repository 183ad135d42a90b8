"""Pauses that every process and node knows of: of a provider until its limit resets, of a node, of dispatch itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.redaction import redact

DISPATCH = "dispatch"
"""The scope that stops all launches (RB9)."""
BUDGET = "budget"
"""It stops them, too, until the money of a new day or month is there; no run may try, and no success ends it."""

BY_HAND = "nobody"
"""In place of a probe: no run may try."""


class PauseTable(Table):
    """One paused scope: `dispatch`, `budget`, `provider:NAME` or `node:NAME`. `until` null: until a person, or a probe,
    lifts it."""

    __tablename__ = "pauses"
    scope: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    until: Mapped[datetime | None]
    times: Mapped[int] = mapped_column(server_default="1")
    probe: Mapped[str | None]
    lifted_at: Mapped[datetime | None]


class Pause(Row):
    """`times`: how often in a row it was paused without a success between; `probe`: the run that may go on to try."""

    scope: str
    reason: str
    since: datetime
    until: datetime | None = None
    times: int = 1
    probe: str | None = None

    @property
    def by_hand(self) -> bool:
        """A person said so, and only a person ends it."""
        return self.probe == BY_HAND


class Pauses:
    """Reads and changes of the pauses. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._now = partial(now, clock=clock)

    def pause(self, scope: str, reason: str, until: datetime | None, *, by_hand: bool = False) -> bool:
        """Pause a scope, or move its end. True when it was not paused before, so that people are told once."""
        with self._transaction() as session:
            now = self._now(session)
            row = _locked(session, scope, now)
            fresh = not _active(row, now)
            if not fresh and row.probe == BY_HAND and not by_hand:
                return False
            row.times += fresh
            row.since = now if fresh else row.since
            row.until, row.reason, row.lifted_at = until, redact(reason), None
            row.probe = BY_HAND if by_hand else None
            return fresh

    def enter(self, scopes: Collection[str], probe: str, seconds: float) -> Pause | None:
        """Ask to go where a pause may be: the one in the way, or None.

        After a pause's time only one `probe` may go, to see whether it works again: for all others the scope stays paused
        `seconds` more, or until `trip` or `prove`. One that died may come back under its name.
        """
        left = select(PauseTable).where(PauseTable.scope.in_(scopes), PauseTable.lifted_at.is_(None))
        with self._transaction() as session:
            now = self._now(session)
            rows = session.scalars(left.order_by(PauseTable.scope).with_for_update()).all()
            closed = next((row for row in rows if _active(row, now) and row.probe != probe), None)
            if closed is not None:
                return Pause.model_validate(closed)
            for row in rows:
                row.probe, row.until = probe, now + timedelta(seconds=seconds)
            return None

    def trip(
        self, scope: str, reason: str, probe: str, end: Callable[[datetime, int], datetime]
    ) -> tuple[datetime, bool]:
        """Pause a scope after one more failure there, until `end(now, times in a row)`. A longer pause stays as it is.

        Returns until when (the failure's own time where the pause has no end), and whether it is the first failure in a
        row, so that people are told once.
        """
        with self._transaction() as session:
            now = self._now(session)
            row = _locked(session, scope, now)
            standing = _active(row, now) and row.probe != probe
            until = end(now, max(row.times + (not standing), 1))
            if standing and (row.until is None or row.until >= until):
                return row.until or until, False
            first = row.times == 0
            row.times += not standing
            row.since = now if first else row.since
            row.until, row.reason, row.lifted_at, row.probe = until, redact(reason), None, None
            return until, first

    def prove(self, scopes: Collection[str], probe: str) -> None:
        """The `probe` worked: what was paused there is open again, and its history forgotten."""
        proved = update(PauseTable).where(PauseTable.scope.in_(scopes), PauseTable.probe == probe)
        with self._transaction() as session:
            session.execute(proved.values(lifted_at=self._now(session), times=0, probe=None))

    def active(self) -> dict[str, Pause]:
        """What is paused now, by scope."""
        with self._transaction() as session:
            now = self._now(session)
            rows = session.scalars(select(PauseTable).order_by(PauseTable.scope))
            return {row.scope: Pause.model_validate(row) for row in rows if _active(row, now)}

    def times(self, scope: str) -> int:
        """How often in a row the scope was paused; 0 when the last thing there was a success."""
        with self._transaction() as session:
            row = session.get(PauseTable, scope)
            return row.times if row else 0

    def last_end(self, scope: str) -> datetime | None:
        """When the scope's last pause was lifted; what failed before it says nothing about now."""
        with self._transaction() as session:
            row = session.get(PauseTable, scope)
            return row.lifted_at if row else None

    def take_probe(self, scope: str, probe: str) -> bool:
        """Be the one run that may try although the scope is paused. True for one caller until `pause` or `succeed`."""
        taken = (
            update(PauseTable)
            .where(PauseTable.scope == scope, PauseTable.lifted_at.is_(None))
            .where(PauseTable.probe.is_(None) | (PauseTable.probe == probe))
            .values(probe=probe)
        )
        with self._transaction() as session:
            return bool(session.execute(taken).rowcount)  # type: ignore[attr-defined]  # an update's result has it

    def drop_probe(self, scope: str, probe: str) -> None:
        """The probing run ended without an answer, so another one may try."""
        dropped = update(PauseTable).where(PauseTable.scope == scope, PauseTable.probe == probe).values(probe=None)
        with self._transaction() as session:
            session.execute(dropped)

    def succeed(self, scope: str, *, by_hand: bool = False) -> bool:
        """Something worked there: the pause ends and its history is forgotten. True when it was paused.

        What a person paused ends only `by_hand`.
        """
        with self._transaction() as session:
            row = session.get(PauseTable, scope, with_for_update=True)
            if row is None or (row.lifted_at is not None and row.times == 0):
                return False
            was = _active(row, self._now(session))
            if was and row.probe == BY_HAND and not by_hand:
                return False
            row.lifted_at, row.times, row.probe = self._now(session), 0, None
            return was


def _locked(session: Session, scope: str, now: datetime) -> PauseTable:
    """The scope's row, made as a lifted one where there is none; nobody else changes it in this transaction."""
    session.execute(
        insert(PauseTable)
        .values(scope=scope, reason="", since=now, until=None, times=0, lifted_at=now)
        .on_conflict_do_nothing(index_elements=["scope"])
    )
    return session.get_one(PauseTable, scope, with_for_update=True)


def _active(row: PauseTable, now: datetime) -> bool:
    return row.lifted_at is None and (row.until is None or row.until > now)
