"""`darkfactory calibrate` and `darkfactory corpus`: today's calibration, and the training examples that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.tables import table_of
from infra.database import open_database
from infra.feedback import Feedback
from infra.objects import open_objects
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.corpus import Holding
    from tasks.feedback import Calibration, Rate


def calibrate_now(settings: Settings, dry_run: bool) -> Calibration:
    """Today's calibration, made and kept unless it was already; with `dry_run` what it would be now. Raises FactoryError."""
    from tasks.feedback import take_calibration

    with open_database(settings) as database:
        return take_calibration(Feedback(database), settings.learning, keep=not dry_run)


def calibration_view(made: Calibration) -> RenderableType:
    left = ", ".join(f"{count} {name}" for name, count in made.left_out.items()) or "none"
    error = "not known yet" if made.error is None else f"{made.error:.3f}"
    head = f"{made.day}: {made.runs} runs counted; left out: {left}. Calibration error: {error}."
    return Group(
        Text(head), _groups(made), Text(), _confidences(made), Text(), _routes(made), *map(Text, _declines(made))
    )


def _groups(made: Calibration) -> Table:
    table = table_of("success by", "name", *_RATE)
    for each in made.groups:
        table.add_row(each.dimension, Text(each.name), *_cells(each.rate))
    return table


def _confidences(made: Calibration) -> Table:
    table = table_of("confidence", "model", "before", "now", "why")
    for each in made.confidences:
        kind = f"{each.intent}, effort {each.effort}"
        table.add_row(kind, Text(each.model), f"{each.before:.2f}", f"{each.value:.2f}", Text(each.why))
    return table


def _routes(made: Calibration) -> Table:
    table = table_of("coder's level", "before", "now", "why")
    for each in made.routes:
        table.add_row(f"{each.intent}, effort {each.effort}", each.before, each.level, Text(each.why))
    return table


def _declines(made: Calibration) -> list[str]:
    from tasks.feedback import decline_line

    return [f"\n{each.dimension} {each.name} got worse: {decline_line(each)}" for each in made.declines]


_RATE = ("runs", "accepted", "from", "to")


def _cells(rate: Rate) -> tuple[str, ...]:
    return (str(rate.runs), f"{rate.share:.0%}", f"{rate.low:.0%}", f"{rate.high:.0%}")


def held(settings: Settings) -> list[Holding]:
    """The corpus by kind and repository."""
    from tasks.corpus import holdings

    return holdings(open_objects(settings))


def forgotten(settings: Settings, repository: str) -> int:
    """Delete the examples of a repository; returns how many there were."""
    from tasks.corpus import forget

    return forget(open_objects(settings), repository)


def corpus_view(found: list[Holding]) -> RenderableType:
    table = table_of("kind", "repository", "examples", "bytes")
    for each in found:
        table.add_row(each.kind, Text(each.repository), str(each.examples), f"{each.size:,}")
    return table if found else Text("The corpus is empty.")
