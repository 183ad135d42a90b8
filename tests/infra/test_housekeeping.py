"""Findings on a real PostgreSQL server: one ticket each, caps that hold, and what a killed run leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.database import Database, open_database
from infra.housekeeping import Draft, Housekeeping, fingerprint
from infra.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(Settings(database_url=database_url)) as opened:
        yield opened


@pytest.fixture
def store(database: Database, clock: Clock) -> Housekeeping:
    return Housekeeping(database, clock)


def found(*names: str) -> list[tuple[str, str, Draft]]:
    return [(fingerprint("shop", "todo", "a.py", name), "todo", Draft(title=name, body="b")) for name in names]


def sort(
    store: Housekeeping, *names: str, chore: str = "technical-debt", per_chore: int = 5, overall: int = 5
) -> list[str]:
    chosen = store.sort(chore, "shop", "folder", found(*names), per_chore=per_chore, overall=overall)
    return [each.title for each in chosen.intended]


def make(store: Housekeeping, name: str) -> bool:
    """What a run does for one ticket; False when somebody else did."""
    ((key, _, _),) = found(name)
    with store.alone(key) as mine:
        if mine is not None:
            store.confirm(key, f"T-{name}")
    return mine is not None


def test_a_finding_is_intended_once_and_stays_intended_until_its_ticket_is_there(store: Housekeeping) -> None:
    """W1: a run killed between 'recorded' and 'created' is finished by the next one."""
    assert sort(store, "a", "b") == ["a", "b"]
    assert sort(store, "a", "b") == ["a", "b"]
    assert make(store, "a")
    assert sort(store, "a", "b") == ["b"]
    assert not make(store, "a")
    assert store.tickets("folder") == {"T-a"}


def test_caps_hold_per_chore_and_over_all_and_open_again_the_next_day(store: Housekeeping, clock: Clock) -> None:
    assert sort(store, "a", "b", "c", per_chore=2) == ["a", "b"]
    assert make(store, "a")
    assert make(store, "b")
    assert sort(store, "a", "b", "c", per_chore=2) == []
    assert sort(store, "x", "y", chore="test-gaps", overall=3) == ["x"]
    assert store.made_today() == {"technical-debt": 2, "test-gaps": 1}
    clock.now += timedelta(days=1)
    assert store.made_today() == {}
    assert sort(store, "a", "b", "c", per_chore=2) == ["c"]


def test_what_was_capped_is_counted_and_comes_when_there_is_room(store: Housekeeping) -> None:
    chosen = store.sort("simplify", "shop", "folder", found("a", "b"), per_chore=1, overall=9)
    assert ([each.title for each in chosen.intended], chosen.known, chosen.capped) == (["a"], 0, 1)
    chosen = store.sort("simplify", "shop", "folder", found("a", "b"), per_chore=2, overall=9)
    assert ([each.title for each in chosen.intended], chosen.known, chosen.capped) == (["a", "b"], 1, 0)


def test_many_machines_at_once_pass_no_cap_and_make_each_ticket_once(store: Housekeeping) -> None:
    """W1: exactly once with several machines at the same time."""
    names, made, lock = [f"n{n}" for n in range(12)], [], threading.Lock()

    def machine() -> None:
        for title in sort(store, *names, per_chore=4, overall=4):
            if make(store, title):
                with lock:
                    made.append(title)

    threads = [threading.Thread(target=machine) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == sorted(names[:4])


def test_a_finding_that_somebody_reported_needs_no_ticket_ever(store: Housekeeping) -> None:
    ((key, kind, draft),) = found("a")
    store.pass_over("technical-debt", "shop", key, kind, draft, "folder", "T-9")
    assert store.known([key]) == {key}
    assert sort(store, "a") == []
    assert store.made_today() == {}


def test_one_of_many_takes_the_turn_and_the_next_comes_later(store: Housekeeping, clock: Clock) -> None:
    turns: list[bool] = []
    threads = [threading.Thread(target=lambda: turns.append(store.take_turn("refill", 600))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(turns) == [False] * 5 + [True]
    clock.now += timedelta(seconds=599)
    assert not store.take_turn("refill", 600)
    clock.now += timedelta(seconds=1)
    assert store.take_turn("refill", 600)


def test_runs_and_marks_are_read_back(store: Housekeeping) -> None:
    store.start("simplify", "shop")
    store.end("simplify", "shop", {"found": 3}, "2 files not scanned")
    (run,) = store.runs()
    assert (run.counts, run.note, run.ended_at is not None) == ({"found": 3}, "2 files not scanned", True)
    store.mark("pr-guardian", "shop", "branch", "abc")
    store.mark("pr-guardian", "shop", "branch", "def")
    assert store.mark_of("pr-guardian", "shop", "branch") == "def"
    assert store.mark_of("pr-guardian", "shop", "other") is None
    assert store.marked_today("pr-guardian") == 1


def test_a_fingerprint_is_of_the_repository_kind_path_and_subject() -> None:
    same = fingerprint("shop", "todo", "a.py", "x")
    others = [fingerprint(*each) for each in (("other", "todo", "a.py", "x"), ("shop", "fixme", "a.py", "x"), ("shop", "todo", "b.py", "x"), ("shop", "todo", "a.py", "y"))]  # fmt: skip
    assert same not in others
    assert same == fingerprint("shop", "todo", "a.py", "x")
