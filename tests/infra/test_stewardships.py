"""Stewardships on a real PostgreSQL server: who is looked after, one steward at a time, and what survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from infra.boards import Ticket
from infra.database import Database, open_database
from infra.ledger import Ledger
from infra.pull_requests import PullRequest
from infra.settings import Settings
from infra.stewardships import Handled, Journal, Stewardships, Wanted

PULL = PullRequest(branch="agent/T-1", title="t", body="b", base="main", head_sha="a" * 40, url="https://x/1")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(Settings(database_url=database_url)) as opened:
        ledger = Ledger(opened, "main")
        ledger.record_ticket(Ticket(board="main", key="T-1", title="t", body="b", state="todo"), "shop")
        ledger.record_pull_request("T-1", PULL)
        yield opened


@pytest.fixture
def stewardships(database: Database) -> Stewardships:
    return Stewardships(database)


def test_every_open_pull_request_of_the_ledger_is_looked_after_once(
    stewardships: Stewardships, database: Database
) -> None:
    stewardships.enrol()
    stewardships.enrol()
    (row,) = stewardships.watched("shop")
    assert (row.branch, row.board, row.ticket, row.state) == ("agent/T-1", "main", "T-1", "watched")
    stewardships.save(row, state="ended", ci_fixes=2)
    Ledger(database, "main").record_pull_request("T-1", PULL.model_copy(update={"state": "merged"}))
    stewardships.enrol()
    assert stewardships.watched() == []
    Ledger(database, "main").record_pull_request("T-1", PULL)
    stewardships.enrol()
    assert [again.ci_fixes for again in stewardships.watched()] == [2]


def test_what_was_dealt_with_is_read_back_as_it_was_written(stewardships: Stewardships) -> None:
    """RB6: counters and what was handled survive a restart."""
    stewardships.enrol()
    (row,) = stewardships.watched()
    handled = Handled(heard=datetime(2026, 1, 1, tzinfo=UTC), qa="c" * 40, qa_exit=1, label=True)
    wish = Wanted(by="ada", instructions='{"x": 1}')
    journal = Journal(
        before="a", after="b", counter="ci_fixes", handled=Handled(), wanted=wish, marker="m", comment="c"
    )
    saved = stewardships.save(row, handled=handled, wanted=wish, journal=journal, review_rounds=1, reason="why")
    assert stewardships.find("shop", "agent/T-1") == saved
    stewardships.save(saved, journal=None, wanted=None)
    found = stewardships.of_ticket("main", "T-1")
    assert found is not None
    assert (found.journal, found.wanted, found.review_rounds) == (None, None, 1)


def test_two_stewards_look_at_a_pull_request_one_after_the_other(stewardships: Stewardships) -> None:
    """What the first one did is what the second one sees."""
    stewardships.enrol()
    inside, seen = threading.Event(), []

    def second() -> None:
        inside.wait(10)
        with stewardships.alone("shop", "agent/T-1") as row:
            seen.append(row.ci_fixes if row else None)

    thread = threading.Thread(target=second)
    thread.start()
    with stewardships.alone("shop", "agent/T-1") as row:
        assert row is not None
        inside.set()
        thread.join(0.3)
        assert seen == []
        stewardships.save(row, ci_fixes=1)
    thread.join(10)
    assert seen == [1]


def test_one_more_round_is_granted_only_to_what_is_parked(stewardships: Stewardships) -> None:
    stewardships.enrol()
    assert stewardships.grant("main", "T-1") is None
    (row,) = stewardships.watched()
    stewardships.save(row, state="parked", reason="used up")
    granted = stewardships.grant("main", "T-1")
    assert granted is not None
    assert (granted.state, granted.extra, granted.reason) == ("watched", 1, "")
    assert stewardships.grant("main", "T-2") is None
