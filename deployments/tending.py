"""Looking after pull requests in this process: `darkfactory steward` and `darkfactory refine`."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from deployments.engine import choose_engine
from deployments.here import bring_up, only_repository, run_flow
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.refining import Ended
    from tasks.stewarding import Stewarded


def steward_now(settings: Settings, ticket: str | None, verbose: bool) -> Stewarded:
    """Look at every pull request once and work what is due; with `ticket` only its rounds. Raises FactoryError."""
    bring_up(choose_engine(settings, verbose))
    from flows.steward import steward_here

    return run_flow(steward_here(ticket))


def refine_now(
    settings: Settings, target: str, repository: str | None, instructions: str, verbose: bool
) -> Ended | None:
    """Refine a branch, or the pull request of a number. Raises FactoryError."""
    name = repository or only_repository(settings)
    bring_up(choose_engine(settings, verbose))
    return run_flow(_refine(name, target, instructions))


async def _refine(repository: str, target: str, instructions: str) -> Ended | None:
    from flows.refine import refine
    from tasks.stewarding import want

    number = target if re.fullmatch(r"#?[0-9]+", target) else ""
    due = await want.fn(
        repository, "" if number else target, number, instructions, f"command line {uuid.uuid4().hex[:8]}"
    )
    return await refine(due.ticket, due.repository, due.board) if due is not None else None
