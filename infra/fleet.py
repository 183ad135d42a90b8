"""The fleet: every machine that joined as a node, with its slots, labels and a lease that it renews while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import CheckConstraint, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.errors import ConfigError

NodeState = Literal["active", "draining", "left"]


class NodeTable(Table):
    """A node. Its work pool in Prefect is named `node-<name>`."""

    __tablename__ = "nodes"
    __table_args__ = (CheckConstraint("state in ('active', 'draining', 'left')", name="state_known"),)
    name: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int]
    labels: Mapped[list[str]]
    state: Mapped[str]
    machine: Mapped[str]
    provider: Mapped[str]
    lease_until: Mapped[datetime]
    joined_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Node(Row):
    """A node as it was read. `provider` is who answers its models, as `split_providers` takes it; `alive`: its lease has not ended; only `active` and alive nodes get work."""

    name: str
    slots: int
    labels: tuple[str, ...]
    state: NodeState
    machine: str
    provider: str
    lease_until: datetime
    joined_at: datetime
    alive: bool = False

    @property
    def pool(self) -> str:
        return pool_name(self.name)


def pool_name(node: str) -> str:
    """The node's work pool in Prefect."""
    return f"node-{node}"


class Fleet:
    """Reads and changes of the nodes. `clock` replaces the database's clock in tests."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._now = partial(now, clock=clock)

    def join(
        self, name: str, *, slots: int, labels: Sequence[str], machine: str, provider: str, lease_seconds: float
    ) -> Node:
        """Join, or come back with other slots or labels. Raises ConfigError while another machine lives under the name."""
        with self._transaction() as session:
            now = self._now(session)
            values: dict[str, Any] = {
                "slots": slots,
                "labels": sorted({label.strip().lower() for label in labels if label.strip()}),
                "state": "active",
                "machine": machine,
                "provider": provider,
                "lease_until": now + timedelta(seconds=lease_seconds),
            }
            new = insert(NodeTable).values(name=name, **values)
            free = or_(NodeTable.machine == machine, NodeTable.state == "left", NodeTable.lease_until <= now)
            joined = new.on_conflict_do_update(index_elements=["name"], set_=values, where=free)
            if session.scalar(joined.returning(NodeTable.name)) is None:
                raise ConfigError(f"a node named {name!r} is alive on another machine; choose another --name")
        return next(node for node in self.nodes() if node.name == name)

    def renew(self, name: str, machine: str, lease_seconds: float) -> NodeState | None:
        """Say that the node lives. Returns its state (a drain is heard here), or None when it is not ours any more."""
        with self._transaction() as session:
            row = session.get(NodeTable, name, with_for_update=True)
            if row is None or row.machine != machine:
                return None
            if row.state != "left":
                row.lease_until = self._now(session) + timedelta(seconds=lease_seconds)
            return row.state  # type: ignore[return-value]  # the check constraint says so

    def set_state(self, name: str, state: NodeState) -> NodeState:
        """`draining`: gets no new work; `left`: gone, and it stays so until it joins again. Returns the state it has then.

        Raises ConfigError for an unknown node, with the known ones.
        """
        with self._transaction() as session:
            here = NodeTable.name == name
            session.execute(update(NodeTable).where(here, NodeTable.state != "left").values(state=state))
            found: NodeState | None = session.scalar(select(NodeTable.state).where(here))
            if found is None:
                known = ", ".join(session.scalars(select(NodeTable.name).order_by(NodeTable.name))) or "none"
                raise ConfigError(f"no node is named {name!r} (known: {known}); see `darkfactory node list`")
            return found

    def nodes(self) -> list[Node]:
        """All nodes by name, those that left too."""
        with self._transaction() as session:
            now = self._now(session)
            rows = session.scalars(select(NodeTable).order_by(NodeTable.name))
            return [
                Node.model_validate(row).model_copy(update={"alive": row.state != "left" and row.lease_until > now})
                for row in rows
            ]
