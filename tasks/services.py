"""The outside systems a process works with, each opened once from the settings. Steps call these; flows never do."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from infra.boards import Board
from infra.boards.opening import open_board
from infra.budgets import Budgets
from infra.claims import Claims
from infra.database import Database, open_database
from infra.deliveries import Deliveries
from infra.feedback import Feedback
from infra.fleet import Fleet
from infra.git import Mirror, directory_name
from infra.housekeeping import Housekeeping
from infra.ledger import Ledger
from infra.lessons import Lessons
from infra.llm.router import Router, open_router
from infra.memory.client import Memory, open_memory
from infra.objects import Objects, open_objects
from infra.pauses import Pauses
from infra.playbooks import Playbooks
from infra.pull_requests import Forge
from infra.pull_requests.folder import FolderForge
from infra.reloading import Loaded, current_settings
from infra.remotes import token_of
from infra.repairs import Repairs
from infra.runner_jobs import RunnerJobs
from infra.sandbox import CommandResult, Sandbox, open_sandbox
from infra.sections import AnyBoard, Level
from infra.settings import Settings
from infra.stewardships import Stewardships
from tasks import progress
from tasks.models import Repository

clock: Callable[[], datetime] | None = None
"""What leases, pauses and retries are measured with; None: the database's clock. Set where time is moved by hand."""


Asked = ParamSpec("Asked")
Opened = TypeVar("Opened")
_opened: dict[tuple[Any, ...], Any] = {}
_first = threading.RLock()


def _once(opening: Callable[Asked, Opened]) -> Callable[Asked, Opened]:
    """Open at the first call, for all threads that ask at the same time, and keep it until `close`."""

    @wraps(opening)
    def opened(*args: Asked.args, **names: Asked.kwargs) -> Opened:
        key = (opening.__name__, *args, *names.values())
        with _first:
            if key not in _opened:
                _opened[key] = opening(*args, **names)
            found: Opened = _opened[key]
            return found

    return opened


@_once
def loaded() -> Loaded:
    return current_settings()


def settings() -> Settings:
    """The settings this process started with; a run keeps them to its end (CF1)."""
    return loaded().settings


def config_problem() -> str | None:
    """Why the settings are the last good ones and not those of factory.yaml, or None."""
    return loaded().problem


@_once
def database() -> Database:
    return open_database(settings())


@_once
def ledger(board: str = "folder") -> Ledger:
    return Ledger(database(), board)


@_once
def claims() -> Claims:
    return Claims(database(), clock)


@_once
def pauses() -> Pauses:
    return Pauses(database(), clock)


@_once
def budgets() -> Budgets:
    return Budgets(database(), settings().budgets, clock)


@_once
def stewardships() -> Stewardships:
    return Stewardships(database())


@_once
def feedback() -> Feedback:
    return Feedback(database(), clock)


@_once
def playbooks() -> Playbooks:
    return Playbooks(database())


@_once
def repairs() -> Repairs:
    return Repairs(database(), clock)


@_once
def housekeeping() -> Housekeeping:
    return Housekeeping(database(), clock)


def housekeeping_board() -> str:
    """The board that tickets of housekeeping go to."""
    return settings().housekeeping.board or next(iter(settings().all_boards))


@_once
def lessons() -> Lessons:
    return Lessons(database())


@_once
def fleet() -> Fleet:
    return Fleet(database(), clock)


@_once
def runner_jobs() -> RunnerJobs:
    return RunnerJobs(database(), clock)


@_once
def deliveries() -> Deliveries:
    return Deliveries(database())


@_once
def sandbox() -> Sandbox:
    return _Announced(open_sandbox(settings()))


class _Announced:
    """The sandbox, with its time limits told to whoever watches for stuck runs; a command that somebody listens to shows by
    what it prints that it gets on, and has no other excuse (RC1)."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.name = sandbox.name

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout_seconds: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
        **options: Any,
    ) -> CommandResult:
        if on_output is not None:

            def heard(data: bytes) -> None:
                progress.touch()
                on_output(data)

            return await self._sandbox.run(command, timeout_seconds=timeout_seconds, on_output=heard, **options)
        with progress.may_be_silent(timeout_seconds or settings().command_timeout_seconds):
            return await self._sandbox.run(command, timeout_seconds=timeout_seconds, **options)


@_once
def objects() -> Objects:
    return open_objects(settings())


@_once
def memory() -> Memory | None:
    """None when it is turned off."""
    return open_memory(settings()) if settings().memory.enabled else None


@_once
def board(name: str = "folder") -> Board:
    return open_board(settings(), name)


def board_section(name: str) -> AnyBoard:
    """The board's section of factory.yaml."""
    return settings().all_boards[name]


@_once
def router(level: Level) -> Router:
    """The models of a level. Nothing is opened or asked here."""
    return open_router(settings(), level, pauses, budgets)


def has_strong() -> bool:
    """Whether there is a model for the last attempt and for roles that want one (I9)."""
    return bool(settings().of_level("strong"))


_opening = asyncio.Lock()


async def model(strong: bool = False) -> Router:
    """The usual or the strong level, opened: the first call may download weights."""
    chosen = router("strong" if strong and has_strong() else "usual")
    async with _opening:
        await chosen.ready()
    return chosen


async def model_named(name: str) -> Router:
    """The one of the two levels that has this name: a step asks the model its job or seat was given."""
    usual = router("usual")
    return usual if usual.name == name or not has_strong() else router("strong")


def provider(strong: bool = False) -> str:
    """Who answers the calls of the usual or the strong level, as pauses name them: see `split_providers`."""
    return settings().providers_of("strong" if strong and has_strong() else "usual")


def mirror(repository: Repository) -> Mirror:
    """The factory's copy of a run's repository, with the token for its remote, which no worktree and no step sees."""
    return Mirror(Path(repository.mirror), token_of(settings().repositories.get(repository.name)))


def forge(repository: str) -> Forge:
    """Where the repository of this name has its pull requests."""
    configured = settings().repositories.get(repository)
    if configured is not None and configured.github is not None:
        from infra.pull_requests.github import GitHubForge  # PyGithub takes half a second to import

        return GitHubForge(configured.github, settings().answers)
    remote = Path(configured.remote).expanduser() if configured and configured.remote else None
    if remote is not None and remote.is_dir():  # several machines may push there, so their pull requests meet beside it
        place = remote.absolute()
        return FolderForge(place.with_name(f"{place.name.removesuffix('.git')}.pulls"), place)
    place = settings().root / "forge" / repository
    return FolderForge(place / "pulls", place / "repo.git")


def close() -> None:
    """Forget everything that was opened; the next call opens it anew, with the settings as they are then."""
    with _first:
        if (database.__name__,) in _opened:
            database().close()
        _opened.clear()


def worktrees() -> Path:
    """Where checkouts are made; each is removed by the step that made it."""
    return settings().root / "worktrees"


def ticket_lock(board: str, key: str) -> Path:
    """The folder whose kernel lock a run holds while it works on the ticket on this machine."""
    return settings().root / "run" / "tickets" / f"{directory_name(board)}--{directory_name(key)}"


def home_secret() -> bytes:
    """32 random bytes of this home, made once; the key of every prompt nonce."""
    path = settings().root / "run" / "secret"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(secrets.token_bytes(32))
        draft.chmod(0o600)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
