"""The storm of A6 on a few tickets; `python tests/faults/budget_storm.py` does it with 35."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("budget_storm.py")

pytestmark = [pytest.mark.faults]


def test_tickets_that_spend_at_once_and_are_killed_never_pass_the_cap(tmp_path: Path, database_url: str) -> None:
    """A6, RB11: neither what the endpoint billed nor what the ledger knows, and the ledger knows of all of it."""
    command = [sys.executable, "-P", str(SCRIPT), "--tickets", "10", "--cap", "0.25", "--kills", "8", "--json"]
    names = {"DARKFACTORY_DATABASE_URL": database_url, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, env={**os.environ, **names}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout, done.stderr
    count = json.loads(done.stdout)
    assert done.returncode == 0, count
    assert 0.125 < count["ledger USD"] <= 0.25, count
