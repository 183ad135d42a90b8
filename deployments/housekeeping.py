"""The commands `darkfactory housekeeping …`: what the chores are and did, and one of them here and now."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.definitions import CHORE_FLOWS
from deployments.engine import choose_engine
from deployments.here import bring_up, run_flow
from deployments.tables import table_of
from infra.chores import CHORES
from infra.database import open_database
from infra.errors import ConfigError
from infra.housekeeping import ChoreRun, Housekeeping
from infra.llm import Frozen
from infra.mistakes import nearest
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.backlog import Swept


class ChoreState(Frozen):
    """A chore of the shipped table with the schedule that factory.yaml gives it, and its last runs by repository."""

    name: str
    about: str
    cron: str | None
    max_per_day: int
    today: int
    runs: tuple[ChoreRun, ...]


class Overview(Frozen):
    """`today` are tickets of the day (UTC) that count against `max_tickets_per_day`."""

    enabled: bool
    board: str | None
    max_tickets_per_day: int
    today: int
    chores: tuple[ChoreState, ...]


def take_overview(settings: Settings) -> Overview:
    """Read the ledger once. Raises Unreachable."""
    section = settings.housekeeping
    with open_database(settings) as database:
        store = Housekeeping(database)
        runs, today = store.runs(), store.made_today()
    chores = tuple(
        ChoreState(
            name=name, about=chore.about, cron=section.cron(name), max_per_day=section.max_per_day(name),
            today=today.get(name, 0), runs=tuple(run for run in runs if run.chore == name and run.repository),
        )
        for name, chore in CHORES.items()
    )  # fmt: skip
    return Overview(
        enabled=section.enabled, board=section.board, max_tickets_per_day=section.max_tickets_per_day,
        today=sum(today.values()), chores=chores,
    )  # fmt: skip


def run_now(settings: Settings, chore: str, repository: str | None, dry_run: bool, verbose: bool) -> tuple[Swept, ...]:
    """Run a chore in this process. Raises ConfigError for an unknown one and while housekeeping is off."""
    if chore not in CHORES:
        hint = nearest(chore, sorted(CHORES))
        raise ConfigError(f"there is no chore {chore!r}{hint}; known: {', '.join(CHORES)}")
    if not settings.housekeeping.enabled and not dry_run:
        raise ConfigError("housekeeping is off; set `housekeeping.enabled: true` in factory.yaml, or try --dry-run")
    bring_up(choose_engine(settings, verbose))
    module, _, name = CHORE_FLOWS.get(chore, "flows.backlog.find_work").rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    named = {} if chore in CHORE_FLOWS else {"chore": chore}

    swept: tuple[Swept, ...] = run_flow(flow(**named, repository=repository, dry_run=dry_run))
    return swept


def overview_table(overview: Overview) -> RenderableType:
    table = table_of("chore", "when (UTC)", "today", "last run", "found", "made", "what it looks for")
    for chore in overview.chores:
        last = max(chore.runs, key=lambda run: run.started_at, default=None)
        counts = [str(sum(run.counts.get(name, 0) for run in chore.runs)) if last else "" for name in ("found", "made")]
        cells = (chore.name, chore.cron or "never", f"{chore.today}/{chore.max_per_day}", _when(last), *counts, chore.about)  # fmt: skip
        table.add_row(*map(Text, cells))
    state = "on" if overview.enabled else "off: set `housekeeping.enabled: true`"
    notes = [f"{run.chore} in {run.repository}: {run.note}" for c in overview.chores for run in c.runs if run.note]
    head = f"Housekeeping is {state}; {overview.today} of {overview.max_tickets_per_day} tickets today."
    return Group(Text(head), table, *map(Text, notes))


def _when(run: ChoreRun | None) -> str:
    if run is None:
        return "never"
    at: datetime = run.started_at
    return f"{at:%Y-%m-%d %H:%M}" + ("" if run.ended_at else " (not ended)")


def swept_table(swept: Sequence[Swept]) -> RenderableType:
    table = table_of("chore", "repository", "found", "made", "known", "duplicates", "capped")
    for each in swept:
        table.add_row(*map(Text, (each.chore, each.repository, *map(str, each.counts.values()))))
    word = "would make" if any(each.dry_run for each in swept) else "made"
    titles = [f"{word}: {title}" for each in swept for title in each.titles]
    notes = [f"{each.repository}: {note}" for each in swept for note in each.notes]
    return Group(table, *map(Text, [*titles, *notes]))
