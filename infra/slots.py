"""Slots of this machine that its processes share: each is a file with a kernel lock, so a slot is free the moment its
holder dies, however it dies, and nothing has to be renewed or swept.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from infra.errors import CapacityUnavailable, ConfigError, InfraError
from infra.files import naming_a_full_disk

POLL_SECONDS = 0.1
LOCK_SECONDS = 900.0
"""Longest wait for a lock of a file."""


@asynccontextmanager
async def slot(folder: Path, count: int) -> AsyncIterator[None]:
    """Hold one of `count` slots (files of `folder`) while inside; waits, without order, until one is free."""
    folder.mkdir(parents=True, exist_ok=True)
    while (handle := _take(folder, count)) is None:  # noqa: ASYNC110  processes free slots, and no event tells
        await asyncio.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def sole(folder: Path, what: str) -> Iterator[None]:
    """Be the only process of this machine inside for `folder`. Raises CapacityUnavailable at once when another one is."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = _take(folder, 1)
    if handle is None:
        raise CapacityUnavailable(f"another run on this machine is at work on {what}; wait for it to end")
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """An exclusive lock that ends with its holders, however they end. The file itself means nothing; its folder is made.

    Raises DiskFull, or ConfigError where no lock can be had: a place that may only be read, a file system without locks.
    """
    try:
        with naming_a_full_disk("a lock file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unlockable(path, error) from error
    try:
        _wait_for(handle, path)
        with naming_a_full_disk(f"what {path.name!r} locks"):
            yield handle
    finally:
        os.close(handle)


def _unlockable(path: Path, error: OSError) -> ConfigError:
    why = f"{str(path)!r} cannot be locked: {error.strerror}"
    return ConfigError(f"{why}; make it writable, or choose a place on another disk")


def _wait_for(handle: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InfraError(
                    f"{str(path)!r} has been locked for {LOCK_SECONDS:.0f} s; is a process stuck?"
                ) from None
            time.sleep(0.05)
        except OSError as error:  # a network file system without locks
            raise _unlockable(path, error) from error


def is_held(folder: Path) -> bool:
    """Whether some process is inside `sole` for `folder` now."""
    handle = _take(folder, 1)
    if handle is not None:
        os.close(handle)
    return handle is None


def _take(folder: Path, count: int) -> int | None:
    """The open file of a slot that is ours now, or None. The lock belongs to the open file, not to the process."""
    for number in range(count):
        handle = os.open(folder / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            return handle
    return None
