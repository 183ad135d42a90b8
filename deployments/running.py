"""Running one ticket in this process: surroundings first, then the flow, with progress on stderr."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deployments.engine import choose_engine
from deployments.here import run_flow
from infra.llm import ModelClient
from infra.llm.opening import open_model, plain_settings
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.models import Outcome


def work(settings: Settings, ticket: str, repository: str | None, verbose: bool, board: str = "folder") -> Outcome:
    """Run `work_ticket` to its end. Raises FactoryError; mistakes in ticket, repository or model show before anything starts."""
    engine = choose_engine(settings, verbose)
    from tasks.intake import find_repository, find_ticket

    find_repository(find_ticket(ticket, board), repository)
    settings = plain_settings(settings, next(iter(settings.of_level("usual").values())))
    model = _open_model(settings)
    atexit.register(engine.stop)  # as `bring_up` does
    engine.start()
    if settings.model == "embedded":
        asyncio.run(model.check())  # loads the weights while Prefect's server starts
    engine.wait()
    return run_flow(_work(ticket, repository, verbose, board))


async def _work(ticket: str, repository: str | None, verbose: bool, board: str) -> Outcome:
    from deployments.screen import shown_progress
    from flows.ticket import work_ticket

    with shown_progress(ticket, verbose):
        return await work_ticket(ticket, repository, board)


def _open_model(settings: Settings) -> ModelClient:
    """Opens the model, which fetches the embedded weights, before the live table needs the screen."""
    with download_bar() as progress:
        return open_model(settings, progress)


@contextmanager
def download_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress function (bytes there, bytes in all) that draws a bar on a terminal once there is something to wait for."""
    columns = (TextColumn("model weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("weights", visible=False)
        yield lambda done, total: bar.update(row, completed=done, total=total, visible=True)
