"""Slots: never more holders than there are, and a holder that dies gives its slot back at once (FM1)."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import CapacityUnavailable, ConfigError, DiskFull
from infra.slots import file_lock, slot, sole

HOLD = """
import asyncio, sys
from pathlib import Path
from infra.slots import slot
async def hold():
    async with slot(Path(sys.argv[1]), 1):
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(hold())
"""


async def test_no_more_than_count_hold_a_slot_at_once(tmp_path: Path) -> None:
    inside, most = 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with slot(tmp_path, 2):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.02)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(6)))
    assert most == 2


async def test_a_killed_holder_frees_its_slot_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        waiting = asyncio.ensure_future(_held(tmp_path))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        holder.kill()
        holder.wait()
        died = time.monotonic()
        await asyncio.wait_for(waiting, 10)
        assert time.monotonic() - died < 2


async def _held(folder: Path) -> None:
    async with slot(folder, 1):
        pass


def test_only_one_at_a_time_and_the_second_is_told_at_once(tmp_path: Path) -> None:
    with (
        sole(tmp_path, "ticket 'a'"),
        pytest.raises(CapacityUnavailable, match="ticket 'a'"),
        sole(tmp_path, "ticket 'a'"),
    ):
        pass
    with sole(tmp_path, "ticket 'a'"):
        pass


def test_a_lock_says_where_it_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in its place, a file in the way of its folder, and a network file system that has no locks."""
    (tmp_path / "lock").mkdir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "lock", tmp_path / "file" / "lock"):
        with pytest.raises(ConfigError, match="cannot be locked"), file_lock(place):
            pass

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(ConfigError, match="No locks available"), file_lock(tmp_path / "new" / "lock"):
        pass


def test_a_full_disk_under_a_lock_is_one(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), file_lock(tmp_path / "lock"):
        raise OSError(errno.ENOSPC, "No space left on device")
