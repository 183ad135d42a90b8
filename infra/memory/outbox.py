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

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from infra.errors import ConfigError, DiskFull
from infra.files import write_atomically
from infra.memory import Mark, Record
from infra.memory.records import event_id, mark_id, point_id

STALE_SECONDS = 3600.0
MAX_BYTES = 64_000
"""No writing of ours is longer; a file that is, is not ours."""


class Entry(BaseModel):
    """A record or a mark with the id of its writing: a line of the journal, and the content of a waiting file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    event: str
    record: Record | None = None
    mark: Mark | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Entry:
        if (self.record is None) == (self.mark is None):
            raise ValueError("an entry is either a record or a mark")
        return self

    @property
    def points(self) -> tuple[str, ...]:
        """Ids of the points it is about."""
        return (point_id(self.record),) if self.record else self.mark.points if self.mark else ()

    @property
    def forgets(self) -> tuple[str, ...]:
        """Ids of the points whose text must be nowhere any more."""
        return self.mark.points if self.mark and self.mark.kind == "forgotten" else ()

    @property
    def line(self) -> bytes:
        return f"{self.model_dump_json(exclude_none=True)}\n".encode()


def entry_of(writing: Record | Mark) -> Entry:
    """The entry of an admitted record or of a mark; the same one gives the same."""
    if isinstance(writing, Record):
        return Entry(event=event_id(writing), record=writing)
    return Entry(event=mark_id(writing), mark=writing)


class Outbox:
    """Writings that wait, as files below `path` that only their owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, writing: Record | Mark) -> str:
        """Keep an admitted record, or a mark; returns the id of the writing. Raises DiskFull or ConfigError, and nothing is
        kept then."""
        entry = entry_of(writing)
        private_folder(self.path.parent)
        private_folder(self.path)
        name = f"{time.time_ns():020d}-{entry.event}.json"
        write_atomically(self.path / name, entry.line, mode=0o600)
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
        self._events: set[str] = set()
        self.forgotten: set[str] = set()
        for entry in self.entries():
            self._events.add(entry.event)
            self.forgotten.update(entry.forgets)

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep those that are not in it, certainly on disk when this returns. Raises DiskFull and then keeps none.

        Records of points that were forgotten are not kept, and those that are to be forgotten are erased.
        """
        gone = {point for entry in entries for point in entry.forgets}
        forgotten = self.forgotten | gone
        fresh = {
            e.event: e for e in entries if e.event not in self._events and not (e.record and e.points[0] in forgotten)
        }
        if fresh:
            self._write(list(fresh.values()))
        if gone:
            self._erase(gone)

    def _write(self, fresh: Sequence[Entry]) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            _append(handle, b"".join(entry.line for entry in fresh))
        finally:
            os.close(handle)
        for entry in fresh:
            self._events.add(entry.event)
            self.forgotten.update(entry.forgets)

    def _erase(self, points: set[str]) -> None:
        """Blank the records of these points, in place: what else is there keeps its place, and a kill only has to be
        repeated, which also finds the line that it left half blank."""
        with self.path.open("r+b") as file:
            for start, end, line in self._lines(0):
                entry = _entry(line)
                meant = entry and entry.record and entry.points[0] in points
                if meant or (line.startswith(b" ") and line.strip()):
                    file.seek(start)
                    file.write(b" " * (end - start - 1))
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[Entry]:
        """All of them, oldest first. A line that the disk spoiled, or that was erased, is left out."""
        return (entry for _, _, entry in self._placed(0))

    def since(self, after: int, limit: int) -> tuple[list[str], int]:
        """Points with records after this place, oldest first, at most `limit`; and the place up to which these are all.

        A place beyond the end is one of a journal that is gone: everything is new.
        """
        after = after if after <= self.path.stat().st_size else 0
        found: dict[str, None] = {}
        for start, end, entry in self._placed(after):
            if len(found) == limit:
                return list(found), start
            if entry.record:
                found[entry.points[0]] = None
            after = end
        return list(found), after

    def _placed(self, after: int) -> Iterator[tuple[int, int, Entry]]:
        """Entries with where their line begins and ends."""
        for start, end, line in self._lines(after):
            if entry := _entry(line):
                yield start, end, entry

    def _lines(self, after: int) -> Iterator[tuple[int, int, bytes]]:
        with self.path.open("rb") as lines:
            end = lines.seek(after)
            for line in lines:
                start, end = end, end + len(line)
                yield start, end, line

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


def _entry(line: bytes) -> Entry | None:
    with suppress(ValidationError):
        return Entry.model_validate_json(line)
    return None


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
