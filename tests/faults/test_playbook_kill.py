"""SIGKILL before and after every line of a playbook's journal: the run that follows ends where an undisturbed one ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import Factory
from tests.flows.test_playbooks import THREE, Yard, run, yard  # noqa: F401  a fixture

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.timeout(560),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]
DYING = """
import asyncio, os, signal, sys
from infra.playbooks import Playbooks
from flows.playbooks import run_playbook

left = 0

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def mortal(method):
    def called(*arguments, **names):
        count()
        done = method(*arguments, **names)
        count()
        return done
    return called

for name in ("write", "move", "strike"):
    setattr(Playbooks, name, mortal(getattr(Playbooks, name)))
for number, run in enumerate(sys.argv[1:], 1):
    if (pid := os.fork()) == 0:
        left = number
        asyncio.run(run_playbook(run, suspend=False))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
COUNTED = THREE.replace("- {id: start, run: 'test", "- {id: start, undo: 'true', run: 'test").replace(
    "'echo stopped", '\'echo x >> "$STATE/$service.stops"; echo stopped'
)


@pytest.mark.parametrize(("place", "lines"), [("lab", 7), ("nowhere", 14)])
async def test_killed_at_any_line_of_the_journal_it_ends_as_if_it_had_not_been(
    yard: Yard,  # noqa: F811  the fixture
    prefect_url: str,
    factory: Factory,
    place: str,
    lines: int,
) -> None:
    yard.commit(COUNTED)
    yard.approve()
    names = [f"s{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(2 * lines + 1)]
    for name in names:
        yard.put(f"{name}.status", "up\n")
        yard.put(f"{name}.conf", "place=home\n")
    begun = [yard.begin(service=name, place=place).id for name in names]
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": str(factory.home),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", DYING, *begun]
    said = subprocess.run(command, env=environment, timeout=400, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said.split() == [*["-9"] * (2 * lines), "0"]

    for number, (name, started) in enumerate(zip(names, begun, strict=True), 1):
        ran = await run(started)
        assert ran.state == ("succeeded" if place == "lab" else "undone"), number
        files = yard.files()
        assert files[f"{name}.status"] == "up\n", number
        assert files[f"{name}.conf"] == ("place=lab\n" if place == "lab" else "place=home\n"), number
        assert files[f"{name}.stops"].count("x") == (2 if number == 3 else 1), number  # done, not told, taken back
