"""`darkfactory costs`: what the model calls used and cost by ticket, role, model, node or day, and what the caps leave."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.tables import table_of
from infra.budgets import Budgets, CapUse
from infra.database import open_database
from infra.errors import ConfigError
from infra.ledger import CostGroup, CostRow, Ledger
from infra.llm import Frozen
from infra.settings import Settings

UNITS = {"d": "days", "h": "hours"}


class Costs(Frozen):
    """What `darkfactory costs --json` prints. `since` is None for all time."""

    by: CostGroup
    since: datetime | None
    rows: tuple[CostRow, ...]
    total: CostRow
    caps: tuple[CapUse, ...]


def take_costs(settings: Settings, by: CostGroup, since: datetime | None) -> Costs:
    """Read ledger and budgets. Raises what `open_database` raises."""
    with open_database(settings) as database:
        rows = tuple(Ledger(database).costs(by, since))
        caps = tuple(Budgets(database, settings.budgets).usage())
    return Costs(by=by, since=since, rows=rows, total=_total(rows), caps=caps)


def parse_since(text: str, now: datetime) -> datetime | None:
    """`2026-11-01` (its begin in UTC), `7d` or `12h` before `now`, or `all`. Raises ConfigError."""
    if text == "all":
        return None
    if span := re.fullmatch(r"(\d{1,5})([dh])", text):
        return now - timedelta(**{UNITS[span[2]]: int(span[1])})
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"--since is {text!r}; use a day like 2026-11-01, a span like 7d or 12h, or all") from None


def costs_view(costs: Costs) -> RenderableType:
    """The groups with their total, and below them the caps."""
    since = f"since {costs.since:%Y-%m-%d %H:%M} UTC" if costs.since else "of all time"
    if not costs.rows:
        return Group(Text(f"No model call {since}."), Text(), _caps_table(costs.caps))
    return Group(Text(f"Model calls {since}"), _cost_table(costs), Text(), _caps_table(costs.caps))


def _total(rows: tuple[CostRow, ...]) -> CostRow:
    names = [name for name in CostRow.model_fields if name != "group"]
    return CostRow.model_validate({"group": "all", **{n: sum(getattr(row, n) for row in rows) for n in names}})


def _cost_table(costs: Costs) -> Table:
    table = table_of(costs.by, "calls", "prompt", "cached", "written", "seconds", "USD")
    for row in (*costs.rows, costs.total):
        table.add_row(
            Text(row.group),
            f"{row.calls:,}",
            f"{row.prompt_tokens:,}",
            f"{row.cached_share:.0%}",
            f"{row.completion_tokens:,}",
            f"{row.seconds:.0f}",
            f"{row.usd:.4f}",
        )
    return table


def _caps_table(caps: tuple[CapUse, ...]) -> Table:
    table = table_of("budget", "cap", "used", "of it reserved", "left", "by")
    for cap in caps:
        shown = "{:.0f}" if cap.cap == "ticket_agents" else "{:.4f}"
        limit = "none" if cap.limit is None else shown.format(cap.limit)
        left = "" if cap.limit is None else shown.format(max(cap.limit - cap.used, 0))
        amounts = (shown.format(amount) for amount in (cap.used, cap.reserved))
        table.add_row(Text(cap.cap), limit, *amounts, left, Text(cap.ticket or ""))
    return table
