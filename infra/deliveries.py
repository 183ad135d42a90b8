"""Webhook deliveries that were received, so that each counts once and none is lost between receipt and event."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from infra.database import Database, Row, Table

LOST_AFTER = timedelta(seconds=15)
"""Longer than a receiver tries to hand an event on: after that it died before it could."""


class DeliveryTable(Table):
    """One delivery. `emitted_at` is null until its event was handed to Prefect."""

    __tablename__ = "deliveries"
    source: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    board: Mapped[str | None]
    ticket: Mapped[str | None]
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    emitted_at: Mapped[datetime | None]


class RecordedDelivery(Row):
    source: str
    id: str
    kind: str
    board: str | None = None
    ticket: str | None = None
    received_at: datetime


class Deliveries:
    """Reads and writes of the deliveries."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction

    def accept(self, source: str, id: str, kind: str, board: str | None, ticket: str | None) -> bool:
        """Record a delivery. False when it was there before: a repeat or a replay (SM10), unless its event got lost."""
        new = insert(DeliveryTable).values(source=source, id=id, kind=kind, board=board, ticket=ticket)
        lost = and_(DeliveryTable.emitted_at.is_(None), DeliveryTable.received_at < func.now() - LOST_AFTER)
        again = {"received_at": func.now()}
        with self._transaction() as session:
            fresh = new.on_conflict_do_update(index_elements=["source", "id"], set_=again, where=lost)
            return session.scalar(fresh.returning(DeliveryTable.id)) is not None

    def emitted(self, source: str, id: str) -> None:
        mine = update(DeliveryTable).where(DeliveryTable.source == source, DeliveryTable.id == id)
        with self._transaction() as session:
            session.execute(mine.values(emitted_at=func.now()))

    def waiting(self) -> list[RecordedDelivery]:
        """Deliveries for a board whose event never went out, oldest first: the next tick sees to them."""
        query = select(DeliveryTable).where(DeliveryTable.emitted_at.is_(None), DeliveryTable.board.is_not(None))
        with self._transaction() as session:
            return [
                RecordedDelivery.model_validate(r) for r in session.scalars(query.order_by(DeliveryTable.received_at))
            ]

    def sweep(self, older_than: timedelta) -> int:
        """Forget old deliveries; services do not repeat one after days."""
        old = delete(DeliveryTable).where(DeliveryTable.received_at < func.now() - older_than)
        with self._transaction() as session:
            return int(session.execute(old).rowcount)  # type: ignore[attr-defined]  # a delete's result has it
