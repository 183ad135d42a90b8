"""Repairs on a real PostgreSQL server: one per signature, a journal around every stage, cooldowns, and a halt that stays."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from infra.boards import Ticket
from infra.database import Database, open_database
from infra.errors import ConfigError, FencedOff
from infra.ledger import Ledger
from infra.releases import INSTALLED
from infra.repairs import INTERNAL_ERROR, Repair, Repairs, Sample, Signal
from infra.settings import Settings

SIGNAL = Signal(signature="KeyError in a.b: 'x'", count=3, error="KeyError: 'x'", frames=("a.py:1 in b: x",))
BASELINE = Sample(runs=10, failures=4, counts={SIGNAL.signature: 3})
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(Settings(database_url=database_url)) as opened:
        yield opened


@pytest.fixture
def repairs(database: Database) -> Repairs:
    return Repairs(database)


def begin(repairs: Repairs, signal: Signal = SIGNAL) -> Repair | None:
    return repairs.begin(signal, BASELINE, "works", "main", LONG_AGO)


def begun(repairs: Repairs) -> Repair:
    repair = begin(repairs)
    assert repair is not None
    return repair


def test_many_lookers_begin_one_repair_of_a_signature(repairs: Repairs) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: begin(repairs), range(12)))
    assert len([each for each in found if each]) == 1
    assert repairs.open()[0].baseline == BASELINE


def test_a_failed_repair_rests_twice_as_long_each_time_up_to_a_day(repairs: Repairs) -> None:
    for hours in (1, 2, 4, 8, 16, 24, 24):
        repair = begun(repairs)
        until = repairs.cooldown(repair.signature, 3600)
        assert (until - repairs.now()).total_seconds() == pytest.approx(3600 * hours, abs=2)
        repairs.advance(repair, "ended", outcome="failed", cooldown_until=until - timedelta(days=2))
    last = repairs.newest(1)[0]
    assert begin(repairs) is not None
    assert last.cooldown_until is not None


def test_a_signature_that_cools_down_or_was_just_mended_is_left_alone(repairs: Repairs) -> None:
    repairs.advance(begun(repairs), "ended", outcome="refused", cooldown_until=repairs.now() + timedelta(hours=1))
    assert begin(repairs) is None
    other = Signal(signature="other", count=3, error="e")
    kept = begin(repairs, other)
    assert kept is not None
    repairs.advance(kept, "ended", outcome="kept", switched_at=repairs.now())
    assert begin(repairs, other) is None
    assert repairs.begin(other, BASELINE, "works", "main", repairs.now() + timedelta(days=1)) is not None


def test_a_place_whose_message_differs_each_time_is_repaired_once_at_a_time_and_cools_down(repairs: Repairs) -> None:
    """The message may hold a ticket's text: whoever writes tickets could have a repair for each of them."""
    first = SIGNAL.model_copy(update={"signature": "KeyError in tasks.plan.read: 'one'"})
    other = SIGNAL.model_copy(update={"signature": "KeyError in tasks.plan.read: 'two'"})
    elsewhere = SIGNAL.model_copy(update={"signature": "KeyError in tasks.plan.read_all: 'two'"})
    repair = begin(repairs, first)
    assert repair is not None
    assert begin(repairs, other) is None
    repairs.advance(repair, "ended", outcome="failed", cooldown_until=repairs.now() + timedelta(hours=1))
    assert begin(repairs, other) is None
    assert begin(repairs, elsewhere) is not None


def test_every_stage_is_journaled_before_and_after_and_once(repairs: Repairs) -> None:
    repair = begun(repairs)
    for _ in range(3):
        repairs.enter(repair)
    after = repairs.advance(repair, "switch", "said", old_release=INSTALLED, new_sha="b" * 40)
    repairs.enter(after)
    lines = [(line.stage, line.phase, line.old_sha, line.note) for line in repairs.journal(repair.id)]
    assert lines == [
        ("found", "before", None, ""),
        ("found", "after", INSTALLED, "said"),
        ("switch", "before", INSTALLED, ""),
    ]


def test_only_one_of_two_that_advance_the_same_stage_gets_through(repairs: Repairs) -> None:
    repair = begun(repairs)
    repairs.advance(repair, "ticket")
    with pytest.raises(FencedOff, match="at another stage"):
        repairs.advance(repair, "work")


def test_secrets_in_reasons_are_masked(repairs: Repairs) -> None:
    repair = repairs.advance(begun(repairs), "close", outcome="failed", reason="sk-aaaaaaaaaaaaaaaaaaaaaaaa")
    assert "sk-a" not in repair.reason + repairs.find(repair.id).reason


def test_the_halt_survives_a_restart_and_counts_anew_once_it_is_resumed(database: Database, repairs: Repairs) -> None:
    for number in range(3):
        assert repairs.halt_after_rollbacks() is None
        repair = begin(repairs, Signal(signature=f"s{number}", count=3, error="e"))
        assert repair is not None
        repairs.advance(repair, "ended", outcome="rolled-back")
    assert "3 repairs were rolled back" in (repairs.halt_after_rollbacks() or "")
    assert Repairs(database).state().halted
    assert Repairs(database).resume()
    assert Repairs(database).halt_after_rollbacks() is None
    assert not repairs.resume()


def test_only_what_waits_for_a_person_can_be_approved(repairs: Repairs) -> None:
    repair = begun(repairs)
    with pytest.raises(ConfigError, match="does not wait"):
        repairs.approve(repair.id, "ada")
    repairs.advance(repair, "approval")
    assert repairs.approve(repair.id, "ada").approved_by == "ada"
    with pytest.raises(ConfigError, match="there is no repair 99"):
        repairs.find(99)


def test_a_sample_counts_ended_runs_and_errors_by_release(database: Database, repairs: Repairs) -> None:
    """A run that ended by an error of our own has no end; a cancelled one says nothing."""
    ledger = Ledger(database, "main")
    ticket = Ticket(board="main", key="T-1", title="t", body="b", state="todo")
    ledger.record_ticket(ticket, "works")
    for outcome in ("accepted", "work_failed", "cancelled"):
        ledger.end_attempt(ledger.start_attempt("T-1", "0" * 40, ticket.revision).id, outcome)  # type: ignore[arg-type]
    ledger.start_attempt("T-1", "0" * 40, ticket.revision)
    for release, name in ((INSTALLED, "a"), ("n" * 40, "b"), ("n" * 40, "b")):
        ledger.record_event(None, "T-1", INTERNAL_ERROR, "E: x", {"signature": name, "release": release})
    assert repairs.sample(LONG_AGO) == Sample(runs=5, failures=4, counts={"a": 1, "b": 2})
    assert repairs.sample(LONG_AGO, "n" * 40) == Sample(runs=4, failures=3, counts={"b": 2})
    assert [(each.signature, each.count) for each in repairs.signals(LONG_AGO, 2)] == [("b", 2)]


def test_what_a_release_raised_that_was_taken_back_is_nobodys_failure_any_more(
    database: Database, repairs: Repairs
) -> None:
    gone = "n" * 40
    for _ in range(3):
        Ledger(database, "main").record_event(None, "T-1", INTERNAL_ERROR, "E", {"signature": "b", "release": gone})
    repair = repairs.advance(begun(repairs), "watch", new_sha=gone)
    assert repairs.signals(LONG_AGO, 1) == []
    repairs.advance(repair, "ended", outcome="rolled-back")
    assert repairs.signals(LONG_AGO, 1) == []


def test_the_wanted_release_and_what_nodes_say(repairs: Repairs) -> None:
    assert (repairs.state().wanted, repairs.nodes()) == (INSTALLED, [])
    repairs.want("b" * 40, previous=INSTALLED)
    repairs.want("b" * 40, previous=INSTALLED)
    repairs.runs("n", INSTALLED, "no disk")
    repairs.runs("n", "b" * 40)
    assert repairs.state().wanted == "b" * 40
    assert [(each.release, each.problem) for each in repairs.nodes()] == [("b" * 40, "")]
