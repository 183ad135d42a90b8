"""The command line as a process of its own against a scripted model in another, so that it can be killed and looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.llm.scripted import Rule, Script
from tests.flows.conftest import _prefect, factory  # noqa: F401  fixtures
from tests.shop import ROLES, make_repository, script, write_ticket

ROOT = Path(__file__).parents[2]
SECONDS = 150


KILLED_AFTER = """
import os, runpy, sys
import deployments.running
name, work = sys.argv.pop(1), deployments.running._work
async def until(*given):
    import flows.ticket  # not before the command line has set Prefect up
    step = getattr(flows.ticket, name)
    async def last(*given, **named):
        try:
            return await step(*given, **named)
        finally:
            os.kill(os.getpid(), 9)
    setattr(flows.ticket, name, last)
    return await work(*given)
deployments.running._work = until
runpy.run_module("deployments", run_name="__main__")
"""


class Ended(NamedTuple):
    """How a command ended; `answer` is the JSON object it printed, if any."""

    code: int
    answer: dict[str, Any]
    stdout: str
    stderr: str


class Shop:
    """One home, one repository with a bug, a board with the ticket `shop-1`, and the command `darkfactory run`."""

    def __init__(self, folder: Path, database_url: str, prefect_url: str) -> None:
        self.folder, self.home, self.board = folder, folder / "home", folder / "home" / "board"
        self.log = folder / "requests.jsonl"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": prefect_url,
            "DARKFACTORY_HOME": str(self.home),
            "DARKFACTORY_DATABASE_URL": database_url,
            "DARKFACTORY_MODEL": "openai/scripted",
            "DARKFACTORY_MODEL_TIER": "small",
            "DARKFACTORY_MAX_SAMPLES": "2",
        }
        self.repository = make_repository(folder / "shop")
        write_ticket(self.board, "shop-1")
        self._children: list[subprocess.Popen[str]] = []

    def serve(self, rules: list[Rule] | None = None) -> None:
        """Start the scripted model as a process; its log is the only witness of what was asked."""
        told, port = self.folder / "script.json", self.folder / "port"
        told.write_text(Script(rules=tuple(rules or script())).model_dump_json())
        self._start([sys.executable, "-P", "-m", "infra.llm.scripted", "--script", str(told), "--log", str(self.log),
                     "--port-file", str(port)])  # fmt: skip
        wait_until(port.exists)
        self.environment["DARKFACTORY_MODEL_URL"] = f"http://127.0.0.1:{port.read_text()}/v1"

    def start(self) -> subprocess.Popen[str]:
        where = ["--repo", str(self.repository), "--json"]
        return self._start([sys.executable, "-P", "-m", "deployments", "run", "shop-1", *where])

    def start_until(self, step: str) -> subprocess.Popen[str]:
        """As `start`; the process kills itself, by SIGKILL, the moment this step of `flows.ticket` has ended."""
        where = ["run", "shop-1", "--repo", str(self.repository), "--json"]
        return self._start([sys.executable, "-P", "-c", KILLED_AFTER, step, *where])

    def end_of(self, process: subprocess.Popen[str]) -> Ended:
        stdout, stderr = process.communicate(timeout=SECONDS)
        answer = json.loads(stdout) if stdout else {}
        return Ended(process.returncode, answer, stdout, stderr)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill -9 of the command's whole process group: nothing of it can clean up."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)

    def calls(self) -> list[str]:
        """Roles of the requests so far; a line that is being written is left out."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return [ROLES[json.loads(line)["rule"]] for line in lines]

    def published(self) -> dict[str, str]:
        """Name and text of every pull request."""
        return {path.name: path.read_text() for path in self.home.glob("forge/*/pulls/[!.]*")}

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._children.append(child)
        return child

    def stop(self) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate(timeout=20)


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Return when it holds; fail the test when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


MakeShop = Callable[[str], Shop]


@pytest.fixture
def make_shop(tmp_path: Path, database_url: str, empty_database_url: str, prefect_url: str) -> Iterator[MakeShop]:
    """Makes up to two shops by name, each with a home and a database of its own."""
    databases, made = iter((database_url, empty_database_url)), list[Shop]()

    def make(name: str) -> Shop:
        (tmp_path / name).mkdir()
        made.append(Shop(tmp_path / name, next(databases), prefect_url))
        return made[-1]

    try:
        yield make
    finally:
        for shop in made:
            shop.stop()
