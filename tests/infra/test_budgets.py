"""Budgets on a real PostgreSQL: caps hold for racing processes and survive deaths; what is not known to be free counts."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from infra.budgets import OPEN_SECONDS, Budgets, CapUse
from infra.database import Database
from infra.errors import BudgetExhausted
from infra.sections import BudgetsSection
from infra.settings import Settings, load_settings


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 22, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reserve(budgets: Budgets, key: str, usd: float, ticket: str = "T-1", role: str = "coder", **more: Any) -> None:
    budgets.reserve(key, board="main", ticket=ticket, role=role, usd=usd, **more)


def refused(budgets: Budgets, key: str, usd: float, **more: Any) -> BudgetExhausted:
    with pytest.raises(BudgetExhausted) as caught:
        reserve(budgets, key, usd, **more)
    return caught.value


def rows(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        (found,) = connection.execute("select count(*) from darkfactory_ledger.reservations").fetchone() or (0,)
    return int(found)


def use(budgets: Budgets, cap: str) -> CapUse:
    return next(each for each in budgets.usage() if each.cap == cap)


def test_a_call_that_would_pass_the_cap_is_refused_and_reserves_nothing(database: Database, database_url: str) -> None:
    """A6, RB11"""
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0))
    reserve(budgets, "a", 0.7)
    reserve(budgets, "b", 0.3)
    error = refused(budgets, "c", 0.000001)
    assert (error.scope, rows(database_url)) == ("ticket", 2)
    reserve(budgets, "c", 0.5, ticket="T-2")


def test_sums_are_exact(database: Database) -> None:
    """Ten times 0.1 is 1, which it is not in floating point."""
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0))
    for number in range(10):
        reserve(budgets, f"call-{number}", 0.1)
    refused(budgets, "one more", 1e-9)


def test_the_real_cost_replaces_the_reservation_once(database: Database) -> None:
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0))
    reserve(budgets, "a", 1.0)
    budgets.settle("a", 0.25)
    budgets.settle("a", 0.9)
    reserve(budgets, "b", 0.75)
    refused(budgets, "c", 0.01)


def test_a_released_call_counts_nothing_and_a_settled_one_is_not_released(database: Database) -> None:
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0))
    reserve(budgets, "a", 1.0)
    budgets.release("a")
    reserve(budgets, "b", 1.0)
    budgets.settle("b", 0.9)
    budgets.release("b")
    budgets.release("never reserved")
    refused(budgets, "c", 0.2)


def test_the_same_key_reserves_once_and_a_larger_sum_reserves_the_difference(database: Database) -> None:
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0))
    reserve(budgets, "a", 0.6)
    reserve(budgets, "a", 0.6)
    reserve(budgets, "a", 0.9)
    refused(budgets, "a", 1.1)
    reserve(budgets, "b", 0.1)
    budgets.settle("a", 0.5)
    reserve(budgets, "a", 0.9)
    assert use(budgets, "ticket_usd").used == pytest.approx(0.6)


def test_a_cap_of_zero_means_no_paid_call_and_what_is_free_takes_no_row(database: Database, database_url: str) -> None:
    budgets = Budgets(database, BudgetsSection(ticket_usd=0, day_usd=0))
    refused(budgets, "a", 0.01)
    reserve(budgets, "b", 0)
    assert rows(database_url) == 0


def test_what_is_free_waits_for_no_lock(database: Database, database_url: str) -> None:
    """A local model is not slowed by others' reservations."""
    budgets = Budgets(database, BudgetsSection(ticket_usd=0))
    with psycopg.connect(database_url) as other:
        other.execute("select pg_advisory_xact_lock(7203774)")
        reserve(budgets, "local", 0)
        with ThreadPoolExecutor(1) as pool:
            paid = pool.submit(refused, budgets, "paid", 0.1)
            with pytest.raises(TimeoutError):
                paid.result(timeout=0.3)
            other.rollback()
            paid.result(timeout=10)


def test_caps_of_a_role_count_that_role_of_that_ticket_alone(database: Database) -> None:
    budgets = Budgets(database, BudgetsSection(role_usd={"judge": 0.5}))
    reserve(budgets, "a", 0.5, role="judge")
    budgets.settle("a", 0.5)
    reserve(budgets, "b", 5, role="coder")
    reserve(budgets, "c", 0.5, role="judge", ticket="T-2")
    error = refused(budgets, "d", 0.1, role="judge")
    assert (error.scope, error.reset_at) == ("role", None)


def test_a_day_and_a_month_open_again_in_utc(database: Database, clock: Clock) -> None:
    budgets = Budgets(database, BudgetsSection(day_usd=1.0, month_usd=1.5), clock)
    reserve(budgets, "a", 1.0)
    budgets.settle("a", 1.0)
    error = refused(budgets, "b", 0.5)
    assert (error.scope, error.reset_at) == ("day", datetime(2026, 11, 21, tzinfo=UTC))
    clock.move(hours=2)
    reserve(budgets, "b", 0.5)
    budgets.settle("b", 0.5)
    error = refused(budgets, "c", 0.1)
    assert (error.scope, error.reset_at) == ("month", datetime(2026, 12, 1, tzinfo=UTC))
    clock.move(days=10)
    reserve(budgets, "c", 1.0)


def test_december_is_followed_by_january(database: Database, clock: Clock) -> None:
    clock.now = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    budgets = Budgets(database, BudgetsSection(month_usd=0), clock)
    assert refused(budgets, "a", 0.1).reset_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_the_message_names_the_cap_what_is_used_what_was_asked_and_what_to_do(database: Database, clock: Clock) -> None:
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0, day_usd=5), clock)
    reserve(budgets, "a", 0.75)
    budgets.settle("a", 0.75)
    said = str(refused(budgets, "b", 0.5))
    for part in ("budgets.ticket_usd", "1.0000 USD", "0.7500 USD", "0.5000 USD", "darkfactory retry T-1"):
        assert part in said
    said = str(refused(budgets, "b", 6))
    for part in ("budgets.day_usd", "2026-11-21 00:00 UTC", "darkfactory resume budget"):
        assert part in said


@pytest.mark.parametrize("cap", ["ticket_usd", "day_usd"])
def test_where_only_calls_under_way_are_in_the_way_it_is_soon_tried_again(
    database: Database, clock: Clock, cap: str
) -> None:
    """Most calls cost much less than they reserve, so nobody is called and nothing rests until tomorrow."""
    budgets = Budgets(database, BudgetsSection.model_validate({cap: 1.0}), clock)
    reserve(budgets, "a", 0.9)
    assert refused(budgets, "b", 0.5).reset_at == clock.now + timedelta(seconds=30)
    budgets.settle("a", 0.2)
    reserve(budgets, "b", 0.5)


def test_the_reservation_of_a_call_that_died_counts_for_good(database: Database, clock: Clock) -> None:
    """It may have been billed; after a while nobody waits for its end any more."""
    clock.move(hours=-20)
    budgets = Budgets(database, BudgetsSection(ticket_usd=1.0), clock)
    reserve(budgets, "a", 0.9)
    clock.move(seconds=OPEN_SECONDS + 1)
    assert refused(budgets, "b", 0.5).reset_at is None
    clock.move(days=100)
    refused(budgets, "b", 0.5)


def test_agent_sessions_of_a_ticket_are_capped_over_all_attempts_also_free_ones(database: Database) -> None:
    """RB11"""
    budgets = Budgets(database, BudgetsSection(ticket_agents=2))
    reserve(budgets, "session-1", 0, agent=True)
    reserve(budgets, "session-1", 0, agent=True)
    reserve(budgets, "session-2", 1.0, agent=True)
    budgets.settle("session-2", 0.5)
    error = refused(budgets, "session-3", 0, agent=True)
    assert "ticket_agents" in str(error)
    assert (error.scope, error.reset_at) == ("ticket", None)
    reserve(budgets, "call", 1.0)
    reserve(budgets, "other", 0, ticket="T-2", agent=True)


def test_usage_lists_every_cap_with_what_is_used_and_reserved(database: Database, clock: Clock) -> None:
    caps = BudgetsSection(ticket_usd=2, month_usd=10, role_usd={"coder": 3}, ticket_agents=4)
    budgets = Budgets(database, caps, clock)
    reserve(budgets, "a", 1.0)
    budgets.settle("a", 0.4)
    reserve(budgets, "b", 0.5, agent=True)
    reserve(budgets, "c", 0.3, ticket="T-2")
    assert [(u.cap, u.limit, round(u.used, 9), round(u.reserved, 9), u.ticket) for u in budgets.usage()] == [
        ("month_usd", 10, 1.2, 0.8, None),
        ("day_usd", None, 1.2, 0.8, None),
        ("ticket_usd", 2, 0.9, 0.5, "main:T-1"),
        ("role_usd.coder", 3, 0.9, 0.5, "main:T-1"),
        ("ticket_agents", 4, 1, 0, "main:T-1"),
    ]


def _spend(url: str, name: str, wanted: int) -> None:
    with Database(url) as database:
        budgets = Budgets(database, BudgetsSection(day_usd=1.0))
        for number in range(wanted):
            try:
                reserve(budgets, f"{name}-{number}", 0.07, ticket=name)
            except BudgetExhausted:
                return


def test_racing_processes_never_pass_a_cap(database: Database, database_url: str) -> None:
    """A6: the sum is read and added to under one lock."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    made = multiprocessing.get_context("spawn")
    racing = [made.Process(target=_spend, args=(url, f"T-{n}", 10)) for n in range(4)]
    for process in racing:
        process.start()
    for process in racing:
        process.join(timeout=60)
    assert rows(database_url) == 14
    assert use(Budgets(database, BudgetsSection(day_usd=1.0)), "day_usd").used == pytest.approx(0.98)


def test_a_reservation_survives_kill_9_and_the_next_process_does_not_reserve_it_again(
    database: Database, database_url: str
) -> None:
    """RB11"""
    script = (
        "import os, signal, sys\n"
        "from infra.budgets import Budgets\nfrom infra.database import Database\n"
        "from infra.sections import BudgetsSection\n"
        "b = Budgets(Database(sys.argv[1]), BudgetsSection(ticket_usd=1))\n"
        "b.reserve('a', board='main', ticket='T-1', role='coder', usd=0.8)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    killed = subprocess.run([sys.executable, "-c", script, url], timeout=60, check=False)
    assert killed.returncode == -9
    budgets = Budgets(database, BudgetsSection(ticket_usd=1))
    reserve(budgets, "a", 0.8)
    refused(budgets, "b", 0.3)


def test_the_settings_hold_the_caps(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text("budgets:\n  ticket_usd: 2.5\n  role_usd: {judge: 0.5}\n")
    monkeypatch.setenv("DARKFACTORY_CONFIG", str(file))
    settings: Settings = load_settings()
    assert (settings.budgets.ticket_usd, settings.budgets.role_usd) == (2.5, {"judge": 0.5})
