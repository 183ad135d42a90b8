"""Writings on disk: whole or not there, readable by their owner alone, and never in the journal twice."""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.memory import Record
from infra.memory.outbox import Entry, Journal, Outbox


def record(text: str, source: str = "") -> Record:
    return Record(kind="fact", text=text, scope="shop", source=source, created_at=datetime(2026, 11, 1, tzinfo=UTC))


def entries(*texts: str) -> list[Entry]:
    return [Entry(event=text, record=record(text)) for text in texts]


def test_what_was_put_waits_in_order_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "memory" / "outbox")
    for text in ("one", "two", "three"):
        outbox.put(record(text))
    assert [entry.record.text for _, entry in outbox.waiting(2)] == ["one", "two"]
    modes = {path.stat().st_mode for path in [tmp_path / "memory", *(tmp_path / "memory").rglob("*")]}
    assert {stat.S_IMODE(mode) for mode in modes} == {0o700, 0o600}


def test_what_cannot_be_read_is_set_aside_and_holds_nothing_up(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.put(record("good"))
    for number, bad in enumerate([b"{", b"[]", b'{"event": "e"}', b"\xff\xfe", b"x" * 100_000]):
        (tmp_path / "outbox" / f"0{number}-bad.json").write_bytes(bad)
    assert [entry.record.text for _, entry in outbox.waiting(64)] == ["good"]
    assert len(list((tmp_path / "outbox" / "unreadable").iterdir())) == 5
    assert outbox.count() == 1


def test_what_a_killed_writer_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    old, new = tmp_path / ".1.json.a.tmp", tmp_path / ".2.json.b.tmp"
    for path in (old, new):
        path.write_bytes(b"{")
    os.utime(old, (0, time.time() - 7_200))
    assert outbox.waiting(9) == []
    outbox.sweep()
    assert (old.exists(), new.exists()) == (False, True)


def test_an_unwritable_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file")
    with pytest.raises(ConfigError, match="outbox"):
        Outbox(tmp_path / "outbox").put(record("text"))


def test_the_journal_takes_a_writing_once_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(entries("a", "b", "a"))
    again = Journal(path)
    again.append(entries("b", "c"))
    assert [entry.event for entry in again.entries()] == ["a", "b", "c"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("torn", [b"{", b'{"event": "c", "record": {"kind', b"x" * 9_000])
def test_a_torn_last_line_is_cut_and_nothing_else_is_lost(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(entries("a", "b"))
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path)
    journal.append(entries("c"))
    assert [entry.event for entry in journal.entries()] == ["a", "b", "c"]


def test_a_journal_that_is_one_torn_line_is_empty(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"y" * 10_000)
    assert list(Journal(tmp_path / "journal.jsonl").entries()) == []
    assert (tmp_path / "journal.jsonl").stat().st_size == 0


def test_a_spoiled_line_in_the_middle_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(entries("a", "b", "c"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00" * 40 + b"\n" + lines[2])
    assert [entry.event for entry in Journal(path).entries()] == ["a", "c"]
