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

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def test_killed_dispatchers_and_nodes_do_every_ticket_once(tmp_path: Path, database_url: str, prefect_url: str) -> None:
    """SM9: one branch, one pull request and one run of each ticket, and one run more for each that a kill ended."""
    command = [sys.executable, "-P", str(SCRIPT), "--tickets", str(TICKETS), "--dispatchers", "3", "--json"]
    names = {"DARKFACTORY_DATABASE_URL": database_url, "PREFECT_API_URL": prefect_url, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    count = json.loads(done.stdout)
    assert done.returncode == 0, count
    assert count["branches"] == count["pull requests"] == count["tickets in review"] == TICKETS, count
    assert count["dispatchers killed"], count
    assert count["nodes killed"], count
