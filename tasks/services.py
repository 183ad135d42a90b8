"""The outside systems a process works with, each opened once from the settings. Steps call these; flows never do."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from infra.boards import Board
from infra.boards.opening import open_board
from infra.claims import Claims
from infra.database import Database, open_database
from infra.deliveries import Deliveries
from infra.fleet import Fleet
from infra.git import Mirror, directory_name
from infra.ledger import Ledger
from infra.llm import ModelClient
from infra.llm.opening import open_model
from infra.objects import Objects, open_objects
from infra.pauses import Pauses
from infra.pull_requests import Forge
from infra.pull_requests.folder import FolderForge
from infra.reloading import Loaded, current_settings
from infra.remotes import token_of
from infra.sandbox import CommandResult, Sandbox, open_sandbox
from infra.sections import AnyBoard
from infra.settings import Settings
from tasks import progress
from tasks.models import Repository

clock: Callable[[], datetime] | None = None
"""What leases, pauses and retries are measured with; None: the database's clock. Set where time is moved by hand."""


@cache
def loaded() -> Loaded:
    return current_settings()


def settings() -> Settings:
    """The settings this process started with; a run keeps them to its end (CF1)."""
    return loaded().settings


def config_problem() -> str | None:
    """Why the settings are the last good ones and not those of factory.yaml, or None."""
    return loaded().problem


@cache
def database() -> Database:
    return open_database(settings())


@cache
def ledger(board: str = "folder") -> Ledger:
    return Ledger(database(), board)


@cache
def claims() -> Claims:
    return Claims(database(), clock)


@cache
def pauses() -> Pauses:
    return Pauses(database(), clock)


@cache
def fleet() -> Fleet:
    return Fleet(database(), clock)


@cache
def deliveries() -> Deliveries:
    return Deliveries(database())


@cache
def sandbox() -> Sandbox:
    return _Announced(open_sandbox(settings()))


class _Announced:
    """The sandbox, with its time limits told to whoever watches for stuck runs."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.name = sandbox.name

    async def run(
        self, command: Sequence[str] | str, *, timeout_seconds: float | None = None, **options: Any
    ) -> CommandResult:
        with progress.may_be_silent(timeout_seconds or settings().command_timeout_seconds):
            return await self._sandbox.run(command, timeout_seconds=timeout_seconds, **options)


@cache
def objects() -> Objects:
    return open_objects(settings())


@cache
def board(name: str = "folder") -> Board:
    return open_board(settings(), name)


def board_section(name: str) -> AnyBoard:
    """The board's section of factory.yaml."""
    return settings().all_boards[name]


_models: dict[bool, ModelClient] = {}
_opening = asyncio.Lock()


async def model(strong: bool = False) -> ModelClient:
    """The configured model, or the strong one; the first call may download weights and start the embedded server."""
    strong = strong and settings().strong is not None
    async with _opening:
        if strong not in _models:
            _models[strong] = await asyncio.to_thread(open_model, strong_settings() if strong else settings())
    return _models[strong]


async def model_named(name: str) -> ModelClient:
    """The one of the two models that has this name: a step asks the model its job was given."""
    usual = await model()
    return usual if usual.name == name or settings().strong is None else await model(strong=True)


def provider(strong: bool = False) -> str:
    """Who answers the calls of the usual or the strong model, as pauses name it."""
    chosen = strong_settings() if strong else settings()
    return chosen.provider


def strong_settings() -> Settings:
    """The settings with the strong model in place of the usual one (I9)."""
    section = settings().strong
    if section is None:
        return settings()
    return settings().model_copy(
        update={
            "model": section.model,
            "model_url": section.url,
            "model_key": section.key,
            "model_tier": None,
            "model_context_tokens": section.context_tokens,
            "model_usd_per_million_tokens": section.usd_per_million_tokens,
        }
    )


def mirror(repository: Repository) -> Mirror:
    """The factory's copy of a run's repository, with the token for its remote, which no worktree and no step sees."""
    return Mirror(Path(repository.mirror), token_of(settings().repositories.get(repository.name)))


def forge(repository: str) -> Forge:
    """Where the repository of this name has its pull requests."""
    configured = settings().repositories.get(repository)
    if configured is not None and configured.github is not None:
        from infra.pull_requests.github import GitHubForge  # PyGithub takes half a second to import

        return GitHubForge(configured.github)
    remote = Path(configured.remote).expanduser() if configured and configured.remote else None
    if remote is not None and remote.is_dir():  # several machines may push there, so their pull requests meet beside it
        return FolderForge(remote.absolute().with_name(f"{remote.name.removesuffix('.git')}.pulls"))
    return FolderForge(settings().root / "forge" / repository / "pulls")


def close() -> None:
    """Forget everything that was opened; the next call opens it anew, with the settings as they are then."""
    if database.cache_info().currsize:
        database().close()
    for opened in (loaded, database, deliveries, ledger, claims, pauses, fleet, sandbox, objects, board):
        opened.cache_clear()
    _models.clear()


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
