"""One look at the whole factory (OB2): what runs, waits to be tried again, is parked or paused, the nodes, and the tickets."""

from __future__ import annotations

from datetime import datetime

from infra.claims import Claim, Claims
from infra.database import open_database
from infra.fleet import Fleet, Node
from infra.ledger import Ledger, TicketRow
from infra.llm import Frozen
from infra.pauses import Pause, Pauses
from infra.settings import Settings


class Limits(Frozen):
    """How much may run at the same time."""

    running: int
    slots: int
    max_running: int


class Snapshot(Frozen):
    """`running`, `retrying` (with `due_at` and `reason`) and `parked` are claims; `tickets` were worked on, latest first."""

    at: datetime
    running: tuple[Claim, ...] = ()
    retrying: tuple[Claim, ...] = ()
    parked: tuple[Claim, ...] = ()
    pauses: tuple[Pause, ...] = ()
    nodes: tuple[Node, ...] = ()
    limits: Limits
    tickets: tuple[TicketRow, ...] = ()


def take_snapshot(settings: Settings, limit: int) -> Snapshot:
    """Read the database once. Raises what `open_database` raises."""
    with open_database(settings) as database:
        claims, nodes = Claims(database), tuple(Fleet(database).nodes())
        running = tuple(claims.held())
        rows = [row for board in settings.all_boards for row in Ledger(database, board).overview(limit)]
        live = [node for node in nodes if node.alive and node.state == "active"]
        return Snapshot(
            at=claims.now(),
            running=running,
            retrying=tuple(claims.in_state("retry-queued")),
            parked=tuple(claims.in_state("parked")),
            pauses=tuple(Pauses(database).active().values()),
            nodes=tuple(node for node in nodes if node.state != "left"),
            limits=Limits(
                running=len(running), slots=sum(n.slots for n in live), max_running=settings.dispatch.max_running
            ),
            tickets=tuple(sorted(rows, key=lambda row: row.updated_at, reverse=True)[:limit]),
        )
