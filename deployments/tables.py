"""How `status`, `show`, `node list` and `doctor` look on a terminal. Everything that came from outside is shown as plain text."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.doctor import Check
from deployments.snapshot import Snapshot
from infra.fleet import Node
from infra.ledger import TicketHistory, TicketRow
from infra.llm import Usage

SHOWN_EVENTS = 40


def status_table(rows: list[TicketRow]) -> Table:
    table = table_of("ticket", "state", "verdict", "tries", "tokens", "cached", "model time", "USD", "last", "title")
    for row in rows:
        table.add_row(
            *map(
                Text,
                (
                    row.key,
                    row.state,
                    row.decision or "-",
                    str(row.attempts),
                    f"{row.tokens:,}",
                    f"{row.cached_share:.0%}",
                    f"{row.seconds:.0f} s",
                    f"{row.cost_usd:.4f}",
                    _time(row.updated_at),
                    row.title,
                ),
            )
        )
    return table


def history_view(history: TicketHistory) -> RenderableType:
    head = Text(f"{history.key}  {history.title}", style="bold")
    facts = f"state {history.state} · repository {history.repository}"
    if history.pull_request:
        facts += f"\npull request {history.pull_request.url} (branch {history.pull_request.branch})"
    return Group(head, Text(facts), *_attempts(history), _usage_table(history.usage_by_role), *_events(history))


def _attempts(history: TicketHistory) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for attempt in history.attempts:
        ended = attempt.outcome or "still open"
        reason = f": {attempt.failure_class}: {attempt.error}" if attempt.error else ""
        lines.append(Text(f"\nattempt {attempt.number}, {_time(attempt.started_at)}, {ended}{reason}"))
        for verdict in (v for v in history.verdicts if v.attempt == attempt.id):
            lines.append(Text(f"  round {verdict.round}: {verdict.decision} {verdict.candidate_sha[:12]}"))
            lines += [Text(f"    {reason}") for reason in verdict.reasons]
    return lines


def _usage_table(usage: dict[str, Usage]) -> Table:
    table = table_of("role", "calls", "prompt", "cached", "written", "seconds", "USD")
    for role, used in [*usage.items(), ("all", sum(usage.values(), Usage()))]:
        table.add_row(
            *map(
                Text,
                (
                    role,
                    str(used.calls),
                    f"{used.prompt_tokens:,}",
                    f"{used.cached_tokens:,}",
                    f"{used.completion_tokens:,}",
                    f"{used.seconds:.0f}",
                    f"{used.cost_usd:.4f}",
                ),
            )
        )
    return table


def _events(history: TicketHistory) -> list[RenderableType]:
    shown = history.events[-SHOWN_EVENTS:]
    lines: list[RenderableType] = [Text(f"{_time(e.at)}  {e.kind}  {e.message}") for e in shown]
    left_out = len(history.events) - len(shown)
    return [Text(f"\n({left_out} earlier events: see --json)"), *lines] if left_out else lines


def status_view(snapshot: Snapshot) -> RenderableType:
    """What is going on, and below it the tickets."""
    parts: list[RenderableType] = [_pauses(snapshot), *_claims(snapshot)]
    if snapshot.nodes:
        busy = [(n, [c.ticket for c in snapshot.running if c.node == n.name]) for n in snapshot.nodes]
        parts += [nodes_table(busy), Text()]
    parts.append(
        status_table(list(snapshot.tickets))
        if snapshot.tickets
        else Text("No ticket was worked on yet; start with `darkfactory demo`.")
    )
    return Group(*parts)


def _pauses(snapshot: Snapshot) -> RenderableType:
    lines = []
    for pause in snapshot.pauses:
        end = f"until {_time(pause.until)}" if pause.until else f"until `darkfactory resume {pause.scope}`"
        lines.append(Text(f"paused: {pause.scope} {end}: {pause.reason}", style="yellow"))
    return Group(*lines, *([Text()] if lines else []))


def _claims(snapshot: Snapshot) -> list[RenderableType]:
    rows = [
        *(
            (
                c.state,
                c.ticket,
                f"node {c.node}, {c.turns} call(s), {c.tokens:,} tokens, lease until {c.lease_until.astimezone():%H:%M:%S}"
                + (f"; {c.last_event_at.astimezone():%H:%M:%S} {c.last_event}" if c.last_event_at else ""),
            )
            for c in snapshot.running
        ),
        *(("again", c.ticket, f"{_time(c.due_at) if c.due_at else 'now'}: {c.reason}") for c in snapshot.retrying),
        *(("parked", c.ticket, c.question or c.reason) for c in snapshot.parked),
    ]
    if not rows:
        return []
    table = table_of("", "ticket", "")
    for row in rows:
        table.add_row(*map(Text, row))
    return [table, Text()]


def nodes_table(nodes: list[tuple[Node, list[str]]]) -> Table:
    table = table_of("node", "state", "slots", "labels", "works on")
    for node, tickets in nodes:
        state = (
            node.state
            if node.alive or node.state == "left"
            else f"{node.state}, silent since {_time(node.lease_until)}"
        )
        slots = f"{len(tickets)}/{node.slots}"
        table.add_row(*map(Text, (node.name, state, slots, ", ".join(node.labels), ", ".join(tickets))))
    return table


def doctor_table(checks: list[Check]) -> Table:
    table = table_of("", "check", "")
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("PROBLEM", style="bold red")
        table.add_row(mark, Text(check.name), Text(check.message))
    return table


def table_of(*columns: str) -> Table:
    """An empty table of the house's looks."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns[1:2]))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
