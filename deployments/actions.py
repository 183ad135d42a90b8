"""The command `darkfactory actions`: the workflow file for a repository, and how much of the free compute is used."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from deployments.tables import table_of
from infra.actions import workflow_text
from infra.database import open_database
from infra.errors import ConfigError
from infra.files import write_atomically
from infra.llm import Frozen
from infra.pauses import Pauses
from infra.runner_jobs import RunnerJobs, Used
from infra.sections import ActionsSection
from infra.settings import Settings
from tasks.actions import pause_scope


class Runners(Frozen):
    """The runners of one project: what is used of which caps, the repositories they serve, and why they are paused."""

    project: str
    repositories: tuple[str, ...]
    used: Used
    parallel: int
    minutes_per_month: int
    requests_per_day: int
    paused: str | None = None


def install(checkout: Path, package: str) -> Path:
    """Write the workflow into a checkout, to be committed and pushed. Returns its path. Raises ConfigError."""
    if not (checkout / ".git").exists():
        raise ConfigError(f"{str(checkout)!r} is no checkout of a git repository; name its root")
    path = checkout / ".github" / "workflows" / "darkfactory-unit.yml"
    write_atomically(path, workflow_text(package).encode())
    return path


def take_overview(settings: Settings) -> list[Runners]:
    """The runners of all configured repositories, by project."""
    serving: dict[ActionsSection, list[str]] = {}
    for name, repository in settings.repositories.items():
        if repository.actions is not None:
            serving.setdefault(repository.actions, []).append(name)
    if not serving:
        return []
    with open_database(settings) as database:
        jobs, paused = RunnerJobs(database), Pauses(database).active()
        found = []
        for section, names in serving.items():
            pause = paused.get(pause_scope(section))
            limits = section.model_dump(include={"parallel", "minutes_per_month", "requests_per_day"})
            used, reason = jobs.used(section.project), pause.reason if pause else None
            found.append(
                Runners(project=section.project, repositories=tuple(names), used=used, paused=reason, **limits)
            )
        return found


def overview_table(found: list[Runners]) -> Table:
    table = table_of("project", "repositories", "running", "minutes this month", "requests today", "paused")
    for each in found:
        shares = (
            f"{each.used.open}/{each.parallel}",
            f"{each.used.minutes}/{each.minutes_per_month}",
            f"{each.used.requests}/{each.requests_per_day}",
        )
        table.add_row(*map(Text, (each.project, ", ".join(each.repositories), *shares, each.paused or "")))
    return table
