"""The disk side of memory: writings that wait in a folder, and the journal of all that were taken in.

A writing is a file that appears whole (fsync, then rename), so it is safe before anybody else is up. The owner takes it
in this order: journal, index, then the file goes; killed between any two of them it does the same again, to no effect.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ConfigError, DiskFull
from infra.files import write_atomically
from infra.memory import Record
from infra.memory.records import event_id

STALE_SECONDS = 3600.0
MAX_BYTES = 64_000
"""No writing of ours is longer; a file that is, is not ours."""


class Entry(BaseModel):
    """A record with the id of its writing: a line of the journal, and the content of a waiting file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    event: str
    record: Record


class Outbox:
    """Writings that wait, as files below `path` that only their owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, record: Record) -> str:
        """Keep an admitted record; returns the id of the writing. Raises DiskFull or ConfigError, and nothing is kept then."""
        entry = Entry(event=event_id(record), record=record)
        private_folder(self.path.parent)
        private_folder(self.path)
        name = f"{time.time_ns():020d}-{entry.event}.json"
        write_atomically(self.path / name, entry.model_dump_json().encode(), mode=0o600)
        return entry.event

    def waiting(self, limit: int) -> list[tuple[Path, Entry]]:
        """The oldest that can be read. What cannot is set aside in `unreadable`, so that it holds nothing up."""
        found: list[tuple[Path, Entry]] = []
        for file in sorted(self.path.glob("[0-9]*.json")):
            if len(found) == limit:
                break
            try:
                found.append((file, _read(file)))
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                self._set_aside(file)
        return found

    def count(self) -> int:
        return sum(1 for _ in self.path.glob("[0-9]*.json"))

    def sweep(self) -> None:
        """Remove what writers that were killed left half written."""
        for file in self.path.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink()

    def _set_aside(self, file: Path) -> None:
        aside = self.path / "unreadable"
        private_folder(aside)
        with suppress(FileNotFoundError):
            file.replace(aside / file.name)


def _read(file: Path) -> Entry:
    with file.open("rb") as opened:
        return Entry.model_validate_json(opened.read(MAX_BYTES))


class Journal:
    """Every writing ever taken in, one JSON object per line, in order. Only the owner opens it for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        private_folder(path.parent)
        if not path.exists():
            write_atomically(path, b"", mode=0o600)  # so that the folder knows it before the first line counts on it
        self._cut_torn_line()
        self._events = {entry.event for entry in self.entries()}

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep those that are not in it, certainly on disk when this returns. Raises DiskFull and then keeps none."""
        fresh = {e.event: e for e in entries if e.event not in self._events}
        if not fresh:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            _append(handle, "".join(f"{entry.model_dump_json()}\n" for entry in fresh.values()).encode())
        finally:
            os.close(handle)
        self._events |= fresh.keys()

    def entries(self) -> Iterator[Entry]:
        """All of them, oldest first. A line that the disk spoiled is left out."""
        with self.path.open("rb") as lines:
            for line in lines:
                with suppress(ValidationError):
                    yield Entry.model_validate_json(line)

    def _cut_torn_line(self) -> None:
        """A writer that was killed may have left the start of a line; its file still waits."""
        with self.path.open("r+b") as file:
            end = size = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(end - 4096, 0)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
                os.fsync(file.fileno())


def _append(handle: int, data: bytes) -> None:
    size = os.fstat(handle).st_size
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except OSError as error:
        os.ftruncate(handle, size)
        raise DiskFull(f"the memory journal cannot be written: {error.strerror}; free some space") from error


def private_folder(path: Path) -> None:
    """Make the folder, readable by its owner alone. Raises DiskFull, or ConfigError when the place cannot be used."""
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for the folder {str(path)!r}; free some") from error
        raise ConfigError(
            f"the folder {str(path)!r} cannot be made: {error.strerror}; make its place writable"
        ) from error
