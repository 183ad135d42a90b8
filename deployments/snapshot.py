"""One look at the whole factory (OB2): what runs, waits to be tried again, is parked or paused, the nodes, what it took in
all, what the caps leave, and the tickets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from infra.budgets import Budgets, CapUse
from infra.claims import Claim, Claims
from infra.database import Database, open_database
from infra.fleet import Fleet, Node
from infra.ledger import Ledger, TicketRow, Totals, Work
from infra.llm import Frozen
from infra.pauses import Pause, Pauses
from infra.settings import Settings


class ClaimedWork(Claim, Work):
    """A claim with what was done for its ticket so far, all attempts together."""


class Limits(Frozen):
    """How much may run at the same time, and what the budgets leave."""

    running: int
    slots: int
    max_running: int
    budgets: tuple[CapUse, ...] = ()


class Snapshot(Frozen):
    """`running`, `retrying` (with `due_at`, `reason` and the last `error`) and `parked` are claims; `tickets` were worked on,
    latest first."""

    at: datetime
    running: tuple[ClaimedWork, ...] = ()
    retrying: tuple[ClaimedWork, ...] = ()
    parked: tuple[ClaimedWork, ...] = ()
    pauses: tuple[Pause, ...] = ()
    nodes: tuple[Node, ...] = ()
    totals: Totals = Totals()
    limits: Limits
    tickets: tuple[TicketRow, ...] = ()


def take_snapshot(settings: Settings, limit: int) -> Snapshot:
    """Read the database once. Raises what `open_database` raises."""
    with open_database(settings) as database:
        return snapshot_of(database, settings, limit)


def snapshot_of(database: Database, settings: Settings, limit: int) -> Snapshot:
    """The same of an open database: a fixed number of queries, and one for each board and cap, however many tickets."""
    claims, ledger, nodes = Claims(database), Ledger(database), tuple(Fleet(database).nodes())
    found = claims.in_state("claimed", "running", "retry-queued", "parked")
    done = ledger.work([(claim.board, claim.ticket) for claim in found])
    rows = [row for board in settings.all_boards for row in Ledger(database, board).overview(limit)]
    running = _in_state(found, done, "claimed", "running")
    live = [node for node in nodes if node.alive and node.state == "active"]
    return Snapshot(
        at=claims.now(),
        running=running,
        retrying=_in_state(found, done, "retry-queued"),
        parked=_in_state(found, done, "parked"),
        pauses=tuple(Pauses(database).active().values()),
        nodes=tuple(node for node in nodes if node.state != "left"),
        totals=ledger.totals(),
        limits=Limits(
            running=len(running),
            slots=sum(n.slots for n in live),
            max_running=settings.dispatch.max_running,
            budgets=tuple(Budgets(database, settings.budgets).usage()),
        ),
        tickets=tuple(sorted(rows, key=lambda row: row.updated_at, reverse=True)[:limit]),
    )


def _in_state(claims: list[Claim], done: Mapping[tuple[str, str], Work], *states: str) -> tuple[ClaimedWork, ...]:
    return tuple(
        ClaimedWork.model_validate({**claim.model_dump(), **done.get((claim.board, claim.ticket), Work()).model_dump()})
        for claim in claims
        if claim.state in states
    )
