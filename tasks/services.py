"""The outside systems a process works with, each opened once from the settings. Steps call these; flows never do."""

from __future__ import annotations

import asyncio
import os
import secrets
from functools import cache
from pathlib import Path

from infra.boards.folder import FolderBoard, open_board
from infra.git import Mirror
from infra.ledger import Ledger, open_ledger
from infra.llm import ModelClient
from infra.llm.opening import open_model
from infra.objects import Objects, open_objects
from infra.pull_requests.folder import FolderForge
from infra.sandbox import Sandbox, open_sandbox
from infra.settings import Settings, load_settings
from tasks.models import Repository


@cache
def settings() -> Settings:
    return load_settings()


@cache
def ledger() -> Ledger:
    return open_ledger(settings())


@cache
def sandbox() -> Sandbox:
    return open_sandbox(settings())


@cache
def objects() -> Objects:
    return open_objects(settings())


@cache
def board() -> FolderBoard:
    return open_board(settings())


_model: ModelClient | None = None
_opening = asyncio.Lock()


async def model() -> ModelClient:
    """The configured model; the first call may download weights and start the embedded server."""
    global _model
    async with _opening:
        if _model is None:
            _model = await asyncio.to_thread(open_model, settings())
    return _model


def mirror(repository: Repository) -> Mirror:
    return Mirror(Path(repository.mirror))


def forge(repository: Repository) -> FolderForge:
    return FolderForge(settings().root / "forge" / repository.name / "pulls")


def worktrees() -> Path:
    """Where checkouts are made; each is removed by the step that made it."""
    return settings().root / "worktrees"


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
