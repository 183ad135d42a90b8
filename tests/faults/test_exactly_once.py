"""The fault script of SM9 on a few tickets; `python tests/faults/exactly_once.py` does it with a thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("exactly_once.py")
TICKETS = 40

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.mark.parametrize("kills", [[], ["--no-worker-kills"]], ids=["all are killed", "dispatchers are killed"])
def test_killed_dispatchers_launch_every_ticket_once(kills: list[str], database_url: str, prefect_url: str) -> None:
    """SM9"""
    command = [sys.executable, "-P", str(SCRIPT), "--tickets", str(TICKETS), "--dispatchers", "3", "--json", *kills]
    environment = {**os.environ, "DARKFACTORY_DATABASE_URL": database_url, "PREFECT_API_URL": prefect_url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=220)
    assert done.stdout, done.stderr
    count = json.loads(done.stdout)
    assert done.returncode == 0, count
    assert count["branches"] == count["pull requests"] == count["tickets in review"] == TICKETS, count
    assert count["dispatchers killed"] > 0, count
    assert (count["runs"] == TICKETS) if kills else count["nodes killed"], count
