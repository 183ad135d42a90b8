"""Looking after pull requests in this process: `darkfactory steward` and `darkfactory refine`."""

from __future__ import annotations

import asyncio
import atexit
import re
import uuid
from collections.abc import Coroutine
from typing import TYPE_CHECKING, TypeVar

from deployments.engine import choose_engine
from infra.errors import ConfigError
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.refining import Ended
    from tasks.stewarding import Stewarded

Answer = TypeVar("Answer")


def steward_now(settings: Settings, ticket: str | None, verbose: bool) -> Stewarded:
    """Look at every pull request once and work what is due; with `ticket` only its rounds. Raises FactoryError."""
    _start_engine(settings, verbose)
    from flows.steward import steward_here

    return _run(steward_here(ticket))


def refine_now(
    settings: Settings, target: str, repository: str | None, instructions: str, verbose: bool
) -> Ended | None:
    """Refine a branch, or the pull request of a number. Raises FactoryError."""
    name = repository or _only_repository(settings)
    _start_engine(settings, verbose)
    return _run(_refine(name, target, instructions))


async def _refine(repository: str, target: str, instructions: str) -> Ended | None:
    from flows.refine import refine
    from tasks.stewarding import want

    number = target if re.fullmatch(r"#?[0-9]+", target) else ""
    due = await want.fn(
        repository, "" if number else target, number, instructions, f"command line {uuid.uuid4().hex[:8]}"
    )
    return await refine(due.ticket, due.repository, due.board) if due is not None else None


def _only_repository(settings: Settings) -> str:
    if len(settings.repositories) == 1:
        return next(iter(settings.repositories))
    names = ", ".join(sorted(settings.repositories)) or "none"
    raise ConfigError(f"name the repository with --repo (configured: {names})")


def _start_engine(settings: Settings, verbose: bool) -> None:
    engine = choose_engine(settings, verbose)
    atexit.register(engine.stop)
    engine.start()
    engine.wait()


def _run(flow: Coroutine[object, object, Answer]) -> Answer:
    """Prefect takes SIGTERM over while a flow runs and raises a signal of its own, which is our interruption."""
    from prefect.exceptions import TerminationSignal

    try:
        return asyncio.run(_whole(flow))
    except TerminationSignal:
        raise KeyboardInterrupt from None


async def _whole(flow: Coroutine[object, object, Answer]) -> Answer:
    return await flow
