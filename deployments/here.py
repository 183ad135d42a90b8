"""A flow to its end in this process, for commands that work here and now: Prefect's surroundings first, then the run."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Coroutine
from typing import TypeVar

from deployments.engine import Engine
from infra.errors import ConfigError
from infra.settings import Settings

Answer = TypeVar("Answer")


def bring_up(engine: Engine) -> None:
    """Start it, wait until it answers, and stop it when this process ends: not sooner, because at exit Prefect hands in its
    last logs and waits a minute for a dead server. Raises InfraError."""
    atexit.register(engine.stop)
    engine.start()
    engine.wait()


def run_flow(flow: Coroutine[object, object, Answer]) -> Answer:
    """Prefect takes SIGTERM over while a flow runs and raises a signal of its own, which is our interruption."""
    from prefect.exceptions import TerminationSignal

    try:
        return asyncio.run(_whole(flow))
    except TerminationSignal:
        raise KeyboardInterrupt from None


async def _whole(flow: Coroutine[object, object, Answer]) -> Answer:
    return await flow


def only_repository(settings: Settings) -> str:
    """The configured repository of a command that names none. Raises ConfigError when there is not exactly one."""
    if len(settings.repositories) == 1:
        return next(iter(settings.repositories))
    names = ", ".join(sorted(settings.repositories)) or "none"
    raise ConfigError(f"name the repository with --repo (configured: {names})")
