"""The demo's repository and ticket: copied to `<home>/demo` as a real git repository and board. The rest is `run`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from infra.errors import ConfigError, InfraError
from infra.files import write_atomically

SOURCE = Path(__file__).parent / "demo"
TICKET = "demo"
FIXED = {
    "GIT_AUTHOR_NAME": "Front Desk",
    "GIT_AUTHOR_EMAIL": "desk@roombook.invalid",
    "GIT_AUTHOR_DATE": "2026-01-05T09:00:00+00:00",
    "GIT_COMMITTER_NAME": "Front Desk",
    "GIT_COMMITTER_EMAIL": "desk@roombook.invalid",
    "GIT_COMMITTER_DATE": "2026-01-05T09:00:00+00:00",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}
"""With the same files and git's own rules, the same commit on every machine."""


class Demo(NamedTuple):
    """A prepared demo: folder board, git repository, and the ticket's key."""

    board: Path
    repository: Path
    ticket: str


def prepare_demo(home: Path, fresh: bool = False) -> Demo:
    """The latest demo of this home, made when there is none; `fresh` makes the next one, with a ticket of its own.

    A new number instead of deleting: nothing of an earlier demo (branch, pull request, answers) can be taken for it.
    """
    root = home / "demo"
    latest = max((number for number in map(_number, root.glob("board/demo-*.md"))), default=0)
    number = max(1, latest + 1 if fresh else latest)
    demo = Demo(board=root / "board", repository=root / f"roombook-{number}", ticket=f"{TICKET}-{number}")
    if not demo.repository.exists():
        _make_repository(demo.repository)
    if not (demo.board / f"{demo.ticket}.md").exists():
        _write_ticket(demo)
    return demo


def _number(path: Path) -> int:
    found = re.fullmatch(r"demo-(\d{1,9})\.md", path.name)
    return int(found[1]) if found else 0


def _make_repository(place: Path) -> None:
    """Beside its place first, then renamed: a killed demo leaves no half repository."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(SOURCE / "repository", draft, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for arguments in (
        ("init", "--quiet", "--template=", "--initial-branch=main"),
        ("add", "--all"),
        ("commit", "--quiet", "--no-gpg-sign", "--message", "Book rooms, print signs and invoices"),
    ):
        _git(draft, *arguments)
    draft.rename(place)


def _git(folder: Path, *arguments: str) -> None:
    environment = {**{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}, **FIXED}
    try:
        subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise ConfigError("git is not installed; install the package git, then run this again") from None
    except subprocess.SubprocessError as error:
        raise InfraError(
            f"git {arguments[0]} failed in {str(folder)!r}: {getattr(error, 'stderr', '') or error}"
        ) from error


def _write_ticket(demo: Demo) -> None:
    text = (SOURCE / "board" / "ticket.md").read_text(encoding="utf-8")
    text = text.replace("repository: roombook", f"repository: {demo.repository}", 1)
    write_atomically(demo.board / f"{demo.ticket}.md", text.encode())
