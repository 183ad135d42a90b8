"""Kill -9 at the points of a repair where something becomes durable: the old release or the new one, never in between (L4)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("repair_kill.py")


def killed(database_url: str, *arguments: str) -> dict[str, int]:
    """Run the script; what it counted."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--database", database_url, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}, capture_output=True, text=True, timeout=580,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"'(\w+)': (\d+)", done.stdout)}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_killed_between_all_stages_a_repair_that_does_not_help_ends_in_the_old_release(empty_database_url: str) -> None:
    found = killed(empty_database_url, "--only-commits", "--story", "rolled-back")
    assert found["killed"] > 20
    assert min(found["old"], found["new"]) > 3


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", ["kept", "rolled-back"])
def test_killed_inside_the_stages_too_it_ends_in_one_release(empty_database_url: str, story: str) -> None:
    found = killed(empty_database_url, "--story", story)
    assert found["killed"] > 35
    assert min(found["old"], found["new"]) > 3
