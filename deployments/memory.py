"""The commands `darkfactory memory …`: what memory finds, one point in full, and making the index anew."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.tables import table_of
from infra.errors import ConfigError, Unreachable
from infra.memory import Answer, Point, Wanted
from infra.memory.client import Memory, open_memory
from infra.settings import Settings

PATIENCE_SECONDS = 30.0
"""How long a person waits for an index that has to be opened first."""


def find(settings: Settings, text: str, scope: str | None, limit: int) -> Answer:
    """What fits, best first. Raises Unreachable when memory cannot be asked, ConfigError when it is turned off."""
    section = settings.memory.model_copy(update={"search_seconds": PATIENCE_SECONDS})
    memory = _opened(settings.model_copy(update={"memory": section}))
    answer = memory.search(Wanted(text=text, scope=scope, limit=limit))
    if answer.degraded:
        raise Unreachable(answer.degraded)
    return answer


def point(settings: Settings, name: str) -> Point:
    """Raises ConfigError when there is none."""
    found = _opened(settings).show(name)
    if found is None:
        raise ConfigError(f"memory has no point {name!r}; `darkfactory memory search TEXT --json` shows the ids")
    return found


def rebuild(settings: Settings) -> int:
    """Make the index anew from the journal; returns how many points it has."""
    return _opened(settings).rebuild()


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
        + (f" · last used {found.last_used_at:%Y-%m-%d %H:%M}" if found.last_used_at else "")
        + (f" · found until {found.expires_at:%Y-%m-%d}" if found.expires_at else "")
    )
    said = [f"ticket {record.ticket}" if record.ticket else "", f"failure {record.error_signature}" if record.error_signature else ""]  # fmt: skip
    return Group(
        Text(found.id, style="bold"), Text(facts), *(Text(each) for each in [*said, *found.sources] if each), Text(record.text)
    )  # fmt: skip
