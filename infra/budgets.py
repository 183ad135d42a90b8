"""Budgets: money is reserved before a call is made, so that no number of processes together passes a cap.

A reservation counts until its call is settled with what it really cost. What a kill interrupts was never settled and
counts for good, because it may have been billed. Days and months are those of the database's clock, in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Decimal
from functools import partial
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Index, Numeric, delete, false, func, select, text, true, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.errors import BudgetExhausted
from infra.sections import BudgetsSection

Scope = Literal["ticket", "role", "day", "month"]
_RESERVE_LOCK = 7_203_774
_SMALLEST = Decimal("1e-9")
"""USD; a fraction of it is rounded up."""
OPEN_SECONDS = 7200.0
"""A reservation that is not settled after this time belongs to a call that died."""
SOON_SECONDS = 30.0
"""When to ask again where only calls under way are in the way: most cost much less than they reserved."""


class ReservationTable(Table):
    """What one try of one call may cost, and what it did cost once that is known. `usd` stays what was reserved."""

    __tablename__ = "reservations"
    __table_args__ = (Index(None, "board", "ticket"), Index(None, "at"))
    call_key: Mapped[str] = mapped_column(primary_key=True)
    board: Mapped[str]
    ticket: Mapped[str]
    role: Mapped[str]
    agent: Mapped[bool] = mapped_column(server_default=text("false"))
    usd: Mapped[Decimal] = mapped_column(Numeric(18, 9))
    settled_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 9))
    at: Mapped[datetime]


_COUNTED = func.coalesce(ReservationTable.settled_usd, ReservationTable.usd)
_UNSETTLED = ReservationTable.settled_usd.is_(None)


class CapUse(Row):
    """How much of one cap is used. `cap` is its name below `budgets`; `reserved` is the part of `used` not settled.

    In USD, or in sessions for `ticket_agents`. `limit` None: no cap. For caps of a ticket, `ticket` is the one that used
    most, as `board:key`.
    """

    cap: str
    limit: float | None
    used: float
    reserved: float
    ticket: str | None = None


class _Cap(NamedTuple):
    """A cap, and which reservations count towards it."""

    scope: Scope
    name: str
    limit: Decimal | None
    counts: ColumnElement[bool]
    reset_at: datetime | None = None


class Budgets:
    """Reserves, settles and sums. All methods block. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, caps: BudgetsSection, clock: Clock | None = None) -> None:
        self._transaction, self._caps = database.transaction, caps
        self._now = partial(now, clock=clock)

    def reserve(self, call_key: str, *, board: str, ticket: str, role: str, usd: float, agent: bool = False) -> None:
        """Set aside the most a call may cost, before it is made. Returns when it may be made.

        `call_key` names one try: the same key again is the same reservation (a larger `usd` reserves the difference), so
        a call that may be billed a second time needs a key of its own. What costs nothing is not reserved, unless it is
        an agent's session and those are capped. Raises BudgetExhausted; then nothing was reserved.
        """
        if usd <= 0 and not (agent and self._caps.ticket_agents is not None):
            return
        amount = _exact(usd)
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_RESERVE_LOCK)))
            at, row = self._now(session), session.get(ReservationTable, call_key)
            if row is not None and (row.settled_usd is not None or amount <= row.usd):
                return
            if agent and row is None:
                self._check_agents(session, board, ticket)
            for cap in self._caps_on(at, board, ticket, role):
                _check(session, cap, amount - (row.usd if row else 0), at, ticket)
            if row is not None:
                row.usd = amount
                return
            session.add(
                ReservationTable(
                    call_key=call_key, board=board, ticket=ticket, role=role, agent=agent, usd=amount, at=at
                )
            )

    def settle(self, call_key: str, usd: float) -> None:
        """The call ended and cost `usd`, which replaces what was reserved. The first settling stays."""
        settled = update(ReservationTable).where(ReservationTable.call_key == call_key, _UNSETTLED)
        with self._transaction() as session:
            session.execute(settled.values(settled_usd=_exact(usd)))

    def release(self, call_key: str) -> None:
        """The call surely cost nothing: it was refused, or never sent. Nothing happens when it is settled."""
        with self._transaction() as session:
            session.execute(delete(ReservationTable).where(ReservationTable.call_key == call_key, _UNSETTLED))

    def usage(self) -> list[CapUse]:
        """The caps and how much of each is used now. Those of day and month are listed without a limit, too."""
        caps = self._caps
        with self._transaction() as session:
            day, month = _day(self._now(session)), _month(self._now(session))
            found = [
                _use(session, "month_usd", caps.month_usd, ReservationTable.at >= month),
                _use(session, "day_usd", caps.day_usd, ReservationTable.at >= day),
            ]
            if caps.ticket_usd is not None:
                found.append(_fullest(session, "ticket_usd", caps.ticket_usd, true()))
            for role, limit in caps.role_usd.items():
                found.append(_fullest(session, f"role_usd.{role}", limit, ReservationTable.role == role))
            if caps.ticket_agents is not None:
                found.append(_fullest(session, "ticket_agents", caps.ticket_agents, ReservationTable.agent, count=True))
        return found

    def _caps_on(self, at: datetime, board: str, ticket: str, role: str) -> Iterator[_Cap]:
        """The caps that a call of this role and ticket falls under, the one that rests longest first."""
        caps, day, month = self._caps, _day(at), _month(at)
        mine = (ReservationTable.board == board) & (ReservationTable.ticket == ticket)
        ours = mine & (ReservationTable.role == role)
        next_month = _month(month + timedelta(days=32))
        yield _Cap("month", "month_usd", _limit(caps.month_usd), ReservationTable.at >= month, next_month)
        yield _Cap("day", "day_usd", _limit(caps.day_usd), ReservationTable.at >= day, day + timedelta(days=1))
        yield _Cap("ticket", "ticket_usd", _limit(caps.ticket_usd), mine)
        yield _Cap("role", f"role_usd.{role}", _limit(caps.role_usd.get(role)), ours)

    def _check_agents(self, session: Session, board: str, ticket: str) -> None:
        limit = self._caps.ticket_agents
        if limit is None:
            return
        mine = (ReservationTable.board == board) & (ReservationTable.ticket == ticket) & ReservationTable.agent
        used = session.scalars(select(func.count()).select_from(ReservationTable).where(mine)).one()
        if used >= limit:
            raise BudgetExhausted(
                f"`budgets.ticket_agents` allows {limit} agent session(s) for a ticket, and {used} of {ticket!r} were "
                f"started; raise it in factory.yaml, then `darkfactory retry {ticket}`",
                "ticket",
            )


def _check(session: Session, cap: _Cap, more: Decimal, at: datetime, ticket: str) -> None:
    """Raises BudgetExhausted when `more` USD would pass the cap."""
    if cap.limit is None:
        return
    recent = _UNSETTLED & (ReservationTable.at > at - timedelta(seconds=OPEN_SECONDS))
    used, under_way = _sums(session, cap.counts, recent)
    if used + more <= cap.limit:
        return
    said = (
        f"`budgets.{cap.name}` is {_usd(cap.limit)}: {_usd(used)} are used ({_usd(under_way)} of it reserved by calls that "
        f"have not ended) and a call of ticket {ticket!r} may cost {_usd(more)}"
    )
    if under_way and used - under_way + more <= cap.limit:
        raise BudgetExhausted(
            f"{said}; it is tried again when they have", cap.scope, at + timedelta(seconds=SOON_SECONDS)
        )
    raise BudgetExhausted(f"{said}; {_what_to_do(cap, ticket)}", cap.scope, cap.reset_at)


def _what_to_do(cap: _Cap, ticket: str) -> str:
    if cap.reset_at is None:
        return f"raise the cap in factory.yaml, then `darkfactory retry {ticket}`"
    return f"wait until {cap.reset_at:%Y-%m-%d %H:%M} UTC, or raise the cap in factory.yaml, then `darkfactory resume budget`"


def _sums(session: Session, counts: ColumnElement[bool], part: ColumnElement[bool]) -> tuple[Decimal, Decimal]:
    """USD of what counts, and of the part of it that is meant."""
    zero = Decimal(0)
    sums = select(func.coalesce(func.sum(_COUNTED), zero), func.coalesce(func.sum(_COUNTED).filter(part), zero))
    row = session.execute(sums.where(counts)).one()
    return row[0], row[1]


def _use(session: Session, cap: str, limit: float | None, counts: ColumnElement[bool]) -> CapUse:
    used, reserved = _sums(session, counts, _UNSETTLED)
    return CapUse(cap=cap, limit=limit, used=float(used), reserved=float(reserved))


def _fullest(session: Session, cap: str, limit: float, counts: Any, *, count: bool = False) -> CapUse:
    """The use of a ticket's cap by the ticket that used most of it."""
    table = ReservationTable
    used = func.count() if count else func.sum(_COUNTED)
    reserved = func.coalesce(used.filter(_UNSETTLED if not count else false()), 0)
    top = select(table.board, table.ticket, used.label("used"), reserved.label("reserved")).where(counts)
    row = session.execute(top.group_by(table.board, table.ticket).order_by(used.desc()).limit(1)).first()
    if row is None:
        return CapUse(cap=cap, limit=limit, used=0, reserved=0)
    return CapUse(
        cap=cap, limit=limit, used=float(row.used), reserved=float(row.reserved), ticket=f"{row.board}:{row.ticket}"
    )


def _exact(usd: float) -> Decimal:
    return Decimal(str(usd)).quantize(_SMALLEST, ROUND_UP)


def _limit(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(str(usd))


def _usd(amount: Decimal) -> str:
    return f"{amount:.4f} USD"


def _day(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _month(at: datetime) -> datetime:
    return _day(at).replace(day=1)
