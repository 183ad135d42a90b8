"""The commands `darkfactory lessons …`: which corrections there are, one with its counts, and taking one back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.tables import table_of
from infra.database import open_database
from infra.lessons import Correction, Lessons
from infra.settings import Settings

BY_HAND = "retired by a person"


def listed(settings: Settings, repository: str | None, everything: bool) -> list[Correction]:
    """Those that are shown to runs, newest first; `everything`: the evicted and retired ones, too."""
    repository = repository and repository.encode(errors="replace").decode()  # half characters of a terminal
    with _opened(settings) as lessons:
        found = lessons.corrections(repository)
    return found if everything else [each for each in found if each.state == "active"]


def one(settings: Settings, correction: int) -> Correction:
    """Raises ConfigError when there is none."""
    with _opened(settings) as lessons:
        return lessons.find(correction)


def retire(settings: Settings, correction: int) -> Correction:
    """No run is told it again. Raises ConfigError when there is none."""
    with _opened(settings) as lessons:
        return lessons.retire(correction, BY_HAND)


@contextmanager
def _opened(settings: Settings) -> Iterator[Lessons]:
    with open_database(settings) as database:
        yield Lessons(database)


def corrections_table(found: Sequence[Correction]) -> RenderableType:
    table = table_of("id", "repository", "kind", "state", "seen", "told", "ok", "failed", "promoted", "what it says")
    for each in found:
        promoted = f"{each.promoted_at:%Y-%m-%d}" if each.promoted_at else "-"
        cells = (str(each.id), each.repository, f"{each.intent} {each.effort}", each.state, str(each.seen),
                 str(each.applied), str(each.ok), str(each.failed), promoted, each.message)  # fmt: skip
        table.add_row(*map(Text, cells))
    return table if found else Text("No corrections.")


def correction_view(found: Correction) -> RenderableType:
    said = [
        f"{found.intent} of effort {found.effort} in {found.repository} · {found.state} · made {found.created_at:%Y-%m-%d %H:%M}",
        f"refused {found.seen} attempts · told to {found.applied} · {found.ok} went well · {found.failed} failed so again",
        f"promoted {found.promoted_at:%Y-%m-%d %H:%M}" if found.promoted_at else "not promoted",
        f"retired: {found.reason}" if found.reason else "",
        f"pattern: {found.pattern}",
        f"an accepted change has: {found.remedy}" if found.remedy else "",
    ]
    return Group(Text(f"{found.id}  {found.message}", style="bold"), *(Text(line) for line in said if line))
