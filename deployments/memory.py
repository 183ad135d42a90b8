"""The commands `darkfactory memory …`: what memory finds, one point in full, the index anew, consolidating and undoing it,
and forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.engine import choose_engine
from deployments.here import bring_up, run_flow
from deployments.tables import table_of
from infra.errors import ConfigError, Unreachable
from infra.memory import Answer, Point, Wanted
from infra.memory.client import Memory, open_memory
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.memory.upkeep import Plan
    from tasks.consolidation import Consolidated

PATIENCE_SECONDS = 30.0
"""How long a person waits for an index that has to be opened first."""


def find(settings: Settings, text: str, scope: str | None, limit: int) -> Answer:
    """What fits, best first. Raises Unreachable when memory cannot be asked, ConfigError when it is turned off."""
    section = settings.memory.model_copy(update={"search_seconds": PATIENCE_SECONDS})
    memory = _opened(settings.model_copy(update={"memory": section}))
    answer = memory.search(Wanted(text=_readable(text), scope=scope and _readable(scope), limit=limit))
    if answer.degraded:
        raise Unreachable(answer.degraded)
    return answer


def _readable(text: str) -> str:
    """Without what a terminal may give that is no text (lone surrogates)."""
    return text.encode(errors="replace").decode()


def point(settings: Settings, name: str) -> Point:
    """Raises ConfigError when there is none."""
    found = _opened(settings).show(name)
    if found is None:
        raise ConfigError(f"memory has no point {name!r}; `darkfactory memory search TEXT --json` shows the ids")
    return found


def rebuild(settings: Settings) -> int:
    """Make the index anew from the journal; returns how many points it has."""
    return _opened(settings).rebuild()


def consolidate(settings: Settings, dry_run: bool, verbose: bool) -> Consolidated:
    """Run the flow here. Raises FactoryError."""
    _opened(settings)
    bring_up(choose_engine(settings, verbose))
    from flows.memory import consolidate_memory

    return run_flow(consolidate_memory(dry_run))


def revert(settings: Settings, name: str) -> Plan:
    """Undo a consolidation. Raises ConfigError, Unreachable."""
    choose_engine(settings, False)
    from tasks import consolidation

    return consolidation.revert(_opened(settings), name)


def forget(settings: Settings, name: str) -> tuple[str, ...]:
    """Remove a point for good, and the summaries that say it; returns the ids. Raises ConfigError, Unreachable."""
    choose_engine(settings, False)
    from tasks import consolidation

    return consolidation.forget(_opened(settings), name)


def consolidated_view(done: Consolidated) -> RenderableType:
    from tasks.consolidation import rows, summed_up

    table = table_of("what", "point", "instead of", "text")
    for row in rows(done.plan) if done.plan else []:
        table.add_row(*(Text(row[name]) for name in ("what", "point", "instead of", "text")))
    return Group(Text(summed_up(done)), table) if done.plan and done.plan.acts else Text(summed_up(done))


def _opened(settings: Settings) -> Memory:
    if not settings.memory.enabled:
        raise ConfigError("memory is turned off; set `memory.enabled: true` in factory.yaml")
    return open_memory(settings)


def answer_table(answer: Answer) -> RenderableType:
    table = table_of("score", "id", "kind", "repository", "last", "seen", "text")
    for each in answer.found:
        record = each.point.record
        cells = (f"{each.score:.3f}", each.point.id, record.kind, record.scope, f"{each.point.updated_at:%Y-%m-%d}",
                 str(each.point.seen), record.text)  # fmt: skip
        table.add_row(*map(Text, cells))
    return table if answer.found else Text("Nothing fits.")


def point_view(found: Point) -> RenderableType:
    record = found.record
    facts = (
        f"{record.kind} of {record.scope} · {found.status} · seen {found.seen} · confidence {found.confidence:.2f}\n"
        f"written {record.created_at:%Y-%m-%d %H:%M}"
        + (f" · instead of it {found.superseded_by}" if found.superseded_by else "")
        + (f" · last used {found.last_used_at:%Y-%m-%d %H:%M}" if found.last_used_at else "")
        + (f" · found until {found.expires_at:%Y-%m-%d}" if found.expires_at else "")
    )
    said = [
        f"ticket {record.ticket}" if record.ticket else "",
        f"failure {record.error_signature}" if record.error_signature else "",
        f"made of {' '.join(record.derived_from)}" if record.derived_from else "",
    ]
    return Group(
        Text(found.id, style="bold"), Text(facts), *(Text(each) for each in [*said, *found.sources] if each), Text(record.text)
    )  # fmt: skip
