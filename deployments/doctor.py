"""Looks at everything the factory stands on. Each check is a function that says what is there or raises what is wrong."""

from __future__ import annotations

import asyncio
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from infra.errors import ConfigError, DiskFull, FactoryError, InfraError
from infra.settings import Settings

FREE_BYTES_WANTED = 4 << 30
"""The weights twice while they are put together, the database, and room for worktrees."""


class Check(NamedTuple):
    """One line. `exit_code` is 0 when it is fine, 2 when a person has to change something, 3 for the machine's faults."""

    name: str
    message: str
    exit_code: int

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


def examine(settings: Settings) -> list[Check]:
    """Run all checks, whatever fails. Starts the embedded database, downloads nothing."""
    checks: tuple[tuple[str, Callable[[Settings], str]], ...] = (
        ("python", _python),
        ("git", _git),
        ("sandbox", _sandbox),
        ("disk", _disk),
        ("database", _database),
        ("prefect", _prefect),
        ("model", _model),
        ("board", _board),
        ("repositories", _repositories),
    )
    return [_run(name, check, settings) for name, check in checks]


def exit_code(checks: list[Check]) -> int:
    """2 when a person has to act on any, else 3 when the machine has a fault, else 0."""
    codes = {check.exit_code for check in checks}
    return next((code for code in (ConfigError.exit_code, InfraError.exit_code) if code in codes), 0)


def _run(name: str, check: Callable[[Settings], str], settings: Settings) -> Check:
    try:
        return Check(name, check(settings), 0)
    except FactoryError as error:
        return Check(name, str(error), error.exit_code)


def _python(_settings: Settings) -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise ConfigError(
            f"Python {platform.python_version()} is not supported; use 3.11 to 3.13 and run `make demo` again"
        )
    return f"{platform.python_version()} at {sys.executable}"


def _git(_settings: Settings) -> str:
    found = shutil.which("git")
    if found is None:
        raise ConfigError("git is not installed; install the package git")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return f"{said.stdout.strip()} at {found}"


def _sandbox(settings: Settings) -> str:
    from infra.sandbox import open_sandbox

    open_sandbox(settings)
    if settings.sandbox == "none":
        return "NONE, by `sandbox: none`: commands of tickets and repositories run as you, with your files and network"
    return f"bubblewrap at {shutil.which('bwrap')} isolates commands"


def _disk(settings: Settings) -> str:
    place = settings.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES_WANTED:
        raise DiskFull(
            f"{free / 1e9:.1f} GB are free for {settings.root}; free {FREE_BYTES_WANTED / 1e9:.1f} GB or set `home`"
        )
    return f"{free / 1e9:.0f} GB free for {settings.root}"


def _database(settings: Settings) -> str:
    from infra.ledger import open_ledger

    with open_ledger(settings) as ledger:
        known = len(ledger.overview(10_000))
    return (
        f"{'database_url' if settings.database_url else 'embedded PostgreSQL'} answers, {known} ticket(s) in the ledger"
    )


def _prefect(settings: Settings) -> str:
    from deployments.engine import is_healthy, read_record

    record = read_record(settings.root)
    if record is None or not record.up.alive:
        return "no server is up; each run starts its own (`darkfactory up` starts one with pages and a worker)"
    if not is_healthy(record.api_url):
        raise InfraError(
            f"the server at {record.api_url} does not answer; run `darkfactory down`, then `darkfactory up`"
        )
    return f"up at {record.ui_url}"


def _model(settings: Settings) -> str:
    from infra.llm.opening import open_model
    from infra.llm.weights import EMBEDDED, verify_weights

    if settings.model != "embedded":
        return asyncio.run(open_model(settings).check())
    folder = settings.root / "weights"
    if settings.weights_path:
        return f"embedded, verified weights at {verify_weights(settings.weights_path.expanduser(), folder)}"
    weights = folder / EMBEDDED.file_name
    return (
        f"embedded, weights at {weights}" if weights.exists() else "embedded; the first run downloads 1.1 GB of weights"
    )


def _board(settings: Settings) -> str:
    board = settings.board or settings.root / "board"
    if not board.is_dir():
        return f"{board} does not exist yet; put Markdown tickets there or pass a .md file to `darkfactory run`"
    return f"{len(list(board.glob('*.md')))} ticket file(s) in {board}"


def _repositories(settings: Settings) -> str:
    wrong = [name for name, known in settings.repositories.items() if not (known.path.expanduser() / ".git").exists()]
    if wrong:
        raise ConfigError(
            f"no git repository at the path of {', '.join(map(repr, wrong))}; correct `repositories` in factory.yaml"
        )
    return ", ".join(settings.repositories) or "none configured; pass --repo PATH or name one in the ticket"
