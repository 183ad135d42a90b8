"""Marks: what is said about points counts once, in any order, survives a rebuild, and what is forgotten stays away (M1, M4)."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")
pytest.importorskip("qdrant_client", reason="memory's packages are not installed")

from pydantic import ValidationError

from infra.memory import Mark, Point, Wanted
from infra.memory.outbox import Entry, Journal, entry_of
from infra.memory.records import joined, mark_id, marked, point_id
from tests.infra.memory.serving import NOW, orders, record, serving

LATER = NOW + timedelta(hours=1)
NAME = point_id(record())
SECRET = "Mrs Example of room 12 asked for a refund of her order"


def mark(kind: str = "credit", **more: Any) -> Mark:
    return Mark.model_validate({"kind": kind, "points": (NAME,), "source": "run 1", "at": LATER, **more})


def after(*writings: Entry) -> Point | None:
    """The point after these writings, in this order."""
    point: Point | None = None
    for entry in writings:
        if entry.record:
            point = joined(point, entry.record, entry.event)
        elif entry.mark:
            point = marked(point, NAME, entry.mark, entry.event)
    return point


def test_a_credit_counts_once_per_run_and_moves_the_confidence() -> None:
    one, again, other = mark(a=1), mark(a=1, at=LATER + timedelta(days=1)), mark(a=0.5, source="run 2")
    assert mark_id(one) == mark_id(again) != mark_id(other)
    point = after(*map(entry_of, (record(), one, again, other, mark(b=1, source="run 3"))))
    assert point is not None
    assert (point.helped, point.hindered) == (1.5, 1.0)
    assert point.confidence == pytest.approx(2.5 / 4.5)


def test_a_second_sighting_keeps_the_credits() -> None:
    point = after(entry_of(record()), entry_of(mark(a=1)), entry_of(record(source="run 9", created_at=LATER)))
    assert point is not None
    assert (point.seen, point.helped) == (2, 1.0)


def test_status_marks_come_to_the_same_in_every_order() -> None:
    said = [
        mark("superseded", by="other"),
        mark("restored", at=LATER + timedelta(hours=1)),
        mark("archived", at=LATER + timedelta(hours=2)),
    ]
    points = {after(entry_of(record()), *map(entry_of, order)) for order in map(list, permutations(said))}
    assert [(p.status, p.superseded_by) for p in points if p] == [("archived", "")]


def test_what_was_put_aside_and_is_seen_again_later_is_active_again() -> None:
    put_aside = (entry_of(record()), entry_of(mark("archived")))
    older = after(*put_aside, entry_of(record(source="run 9", created_at=NOW)))
    newer = after(*put_aside, entry_of(record(source="run 9", created_at=LATER + timedelta(hours=1))))
    assert older is not None
    assert newer is not None
    assert (older.status, newer.status) == ("archived", "active")


def test_an_older_journal_still_loads(tmp_path: Path) -> None:
    line = {"event": "e", "record": {"kind": "fact", "text": "Gradle needs JDK 17 here", "scope": "shop", "key": "",
            "ticket": "", "role": "", "error_class": "", "error_signature": "", "verdict": "", "source": "",
            "confirmed": False, "a": 1.0, "b": 1.0, "created_at": "2026-11-01T00:00:00Z"}}  # fmt: skip
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    (entry,) = Journal(tmp_path / "journal.jsonl").entries()
    assert entry.record is not None
    assert (entry.record.stands_for, entry.mark) == (1, None)


@pytest.mark.parametrize(
    "bad", [{}, {"points": ()}, {"points": ("x",) * 65}, {"a": 2}, {"source": ""}, {"kind": "loved"}]
)
def test_a_malformed_mark_is_refused(bad: dict[str, Any]) -> None:
    if not bad:
        with pytest.raises(ValidationError):
            Entry(event="e", record=record(), mark=mark())
        return
    with pytest.raises(ValidationError):
        mark(**bad)


def test_new_points_are_found_by_their_place_in_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([entry_of(record("The first thing that is new", key="1")), entry_of(mark())])
    ids, upto = journal.since(0, 10)
    assert ids == [point_id(record("x" * 20, key="1"))]
    journal.append([entry_of(record("A thing that came after it", key=str(n))) for n in (2, 3, 4)])
    first, place = journal.since(upto, 2)
    rest, end = journal.since(place, 2)
    assert len(first) == 2
    assert len(rest) == 1
    assert journal.since(end, 2) == ([], end)
    assert len(journal.since(10_000_000, 9)[0]) == 4  # another journal: everything is new


def test_marks_survive_a_rebuild_and_are_delivered_with_the_records(tmp_path: Path) -> None:
    with serving(orders(tmp_path)) as memory:
        kept = memory.record(record()).id
        other = memory.record(record("Another lesson about the same build tool")).id
        for each in (mark(a=1), mark(a=1), mark("superseded", points=(other,), by=kept)):
            memory.write(each)
        memory.settle()
        before = memory.points([kept, other])
        assert (before[kept].helped, before[other].superseded_by) == (1.0, kept)
        assert [each.point.id for each in memory.search(Wanted(text="lesson about the gradle build tool")).found] == [
            kept
        ]
        memory.rebuild()
        assert memory.points([kept, other]) == before | {kept: memory.points([kept])[kept]}


def test_what_is_forgotten_is_in_no_file_of_journal_or_outbox_and_no_replay_brings_it_back(tmp_path: Path) -> None:
    with serving(orders(tmp_path)) as memory:
        kept = memory.record(record()).id
        gone = memory.record(record(SECRET)).id
        memory.settle()
        memory.write(mark("forgotten", points=(gone,), source="a person"))
        memory.settle()
        memory.record(record(SECRET, source="said again"))
        memory.settle()
        for _ in range(2):
            point = memory.points([gone])[gone]
            assert (point.status, point.record.text) == ("forgotten", "(forgotten)")
            assert all(each.point.id != gone for each in memory.search(Wanted(text=SECRET)).found)
            memory.rebuild()
        assert kept in memory.points([kept])
        files = [path for path in (tmp_path / "memory").rglob("*") if path.is_file()]
        assert [
            path for path in files if b"Mrs Example" in path.read_bytes()
        ] == []  # rebuilt, so that the index is new, too
        journal = Journal(tmp_path / "memory" / "journal.jsonl")
        assert [entry.points for entry in journal.entries() if entry.record] == [(kept,)]


def test_an_erasure_that_was_killed_in_the_middle_of_a_line_is_finished_when_it_is_repeated(tmp_path: Path) -> None:
    journal, kept, gone = Journal(tmp_path / "journal.jsonl"), entry_of(record()), entry_of(record(SECRET))
    journal.append([kept, gone])
    whole = journal.path.read_bytes()
    half = gone.line.index(b"Mrs Example")
    journal.path.write_bytes(whole.replace(gone.line, b" " * half + gone.line[half:]))
    again = Journal(journal.path)
    again.append([entry_of(mark("forgotten", points=gone.points, source="a person"))])
    assert b"Mrs Example" not in again.path.read_bytes()
    assert [entry.record for entry in again.entries() if entry.record] == [kept.record]
