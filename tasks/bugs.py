"""Exceptions that nothing expected, of the factory's own code: told to the ledger, where repairs start from (L4).

An error of `infra.errors` is somebody's decision and never a bug; so is what Prefect's client or a full machine raises.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.errors import FactoryError
from infra.llm import Frozen
from infra.memory.records import signature
from infra.releases import running
from infra.repairs import INTERNAL_ERROR
from tasks import services

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("deployments", "flows", "tasks", "infra")
FACTORY = "factory"
"""Stands for the board of a run that belongs to no ticket."""
_OTHERS = ("prefect", "httpx", "httpcore")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_MOST_FRAMES = 8
_MOST_CHARS = 1_000


class Bug(Frozen):
    """An unexpected exception. `frames` are lines of our own code, `file:line in function: code`, innermost last."""

    signature: str
    message: str
    frames: tuple[str, ...]


def bug_of(error: BaseException, root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> Bug | None:
    """What an exception says about code below `root`; None when it is no bug of that code."""
    error = _innermost(error)
    frames = list(_own_frames(error, root, packages))
    if not frames or isinstance(error, FactoryError | MemoryError) or not isinstance(error, Exception):
        return None
    kind = type(error)
    if kind.__module__.partition(".")[0] in _OTHERS or (isinstance(error, OSError) and error.errno in _FULL):
        return None
    last, file = frames[-1]
    place = f"{file.removesuffix('.py').replace('/', '.')}.{last.name}"
    message = str(error)[:_MOST_CHARS]
    return Bug(
        signature=signature(f"{kind.__name__} in {place}", message),
        message=f"{kind.__name__}: {message}",
        frames=tuple(f"{file}:{f.lineno} in {f.name}: {f.line}" for f, file in frames[-_MOST_FRAMES:]),
    )


def _innermost(error: BaseException) -> BaseException:
    """Steps that run side by side raise groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _own_frames(
    error: BaseException, root: Path, packages: tuple[str, ...]
) -> Iterator[tuple[traceback.FrameSummary, str]]:
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(root) and path.relative_to(root).parts[0] in packages:
            yield frame, path.relative_to(root).as_posix()


def record_bug(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook of a flow that failed. Never raises what is known to go wrong: the run has its own error to tell."""
    error = getattr(state.data, "result", state.data)
    bug = bug_of(error) if isinstance(error, BaseException) else None
    if bug is None:
        return
    given = flow_run.parameters or {}
    board, ticket = given.get("board") or FACTORY, given.get("ticket") or flow.name
    with suppress(FactoryError):  # the database is away, or the settings cannot be read
        tell(board, ticket, bug, release=running(), node=services.settings().node_name)


def tell(board: str, ticket: str, bug: Bug, *, release: str, node: str) -> None:
    """Append it to the ledger."""
    data = {"signature": bug.signature, "frames": bug.frames, "release": release, "node": node}
    services.ledger(board).record_event(None, ticket, INTERNAL_ERROR, bug.message, data)
