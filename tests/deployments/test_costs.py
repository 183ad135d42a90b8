"""`darkfactory costs` on a real ledger: every grouping adds up to the same total, replays count once, caps are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deployments.__main__ import app
from deployments.costs import parse_since
from infra.boards import Ticket
from infra.budgets import Budgets
from infra.database import Database
from infra.errors import ConfigError
from infra.ledger import Ledger
from infra.llm import Usage
from infra.sections import BudgetsSection

GROUPS = ["ticket", "role", "model", "node", "day"]


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as opened:
        yield opened


@pytest.fixture
def spent(database: Database) -> Ledger:
    """Two tickets, on two boards, of a coder and a judge; the coder's call of T-1 was replayed."""
    for board, key in (("main", "T-1"), ("side", "T-1")):
        ledger = Ledger(database, board)
        ticket = Ticket(board=board, key=key, title="t", body="b", state="todo")
        ledger.record_ticket(ticket, "shop")
        attempt = ledger.start_attempt(key, "a" * 40, ticket.revision)
        coder = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=50, calls=1, seconds=2, cost_usd=0.3)
        judge = Usage(prompt_tokens=200, completion_tokens=10, calls=1, seconds=1, cost_usd=0.05)
        for _ in range(2):
            ledger.record_session(attempt.id, f"{board}-1", "coder", coder, "big", provider="anthropic", effort=4)
        ledger.record_session(attempt.id, f"{board}-2", "judge", judge, "small")
    return ledger


def answer(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert app(["costs", *arguments, "--json"], standalone_mode=False) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("by", GROUPS)
def test_every_grouping_adds_up_to_the_same_total_and_a_replayed_answer_counts_once(
    spent: Ledger, capfd: pytest.CaptureFixture[str], by: str
) -> None:
    """OB3, A6"""
    total = answer(capfd, "--by", by)["total"]
    assert total.pop("usd") == pytest.approx(0.7)
    assert total.pop("cached_share") == pytest.approx(0.5)
    assert total == {
        "group": "all", "calls": 4, "prompt_tokens": 2400, "cached_tokens": 1200, "completion_tokens": 120, "seconds": 6,
    }  # fmt: skip


def test_groups_name_ticket_role_and_model_the_dearest_first(spent: Ledger, capfd: pytest.CaptureFixture[str]) -> None:
    def groups(by: str) -> list[tuple[str, float, float]]:
        rows = answer(capfd, "--by", by)["rows"]
        return [(row["group"], round(row["usd"], 6), row["cached_share"]) for row in rows]

    assert groups("ticket") == [("main:T-1", 0.35, 0.5), ("side:T-1", 0.35, 0.5)]
    assert groups("role") == [("coder", 0.6, 0.6), ("judge", 0.1, 0.0)]
    assert groups("model") == [("big", 0.6, 0.6), ("small", 0.1, 0.0)]


def test_who_answered_and_for_what_effort_is_kept(spent: Ledger, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute("select role, provider, effort from darkfactory_ledger.sessions order by id limit 2")
        assert found.fetchall() == [("coder", "anthropic", 4), ("judge", None, None)]


def test_days_are_utc_and_since_leaves_out_what_was_before(
    spent: Ledger, database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("set timezone to 'Pacific/Auckland'")
        connection.execute(
            "update darkfactory_ledger.sessions set at = timestamptz '2026-01-02 23:30+00' where role = 'judge'"
        )
    days = {row["group"]: row["calls"] for row in answer(capfd, "--by", "day", "--since", "all")["rows"]}
    assert days == {"2026-01-02": 2, f"{datetime.now(UTC):%Y-%m-%d}": 2}
    assert [answer(capfd, "--since", since)["total"]["calls"] for since in ("2026-01-03", "2026-01-02")] == [2, 4]


def test_the_caps_are_shown_with_what_is_used_and_reserved(
    database: Database, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_BUDGETS", json.dumps({"day_usd": 10, "ticket_usd": 2}))
    budgets = Budgets(database, BudgetsSection())
    budgets.reserve("a", board="main", ticket="T-1", role="coder", usd=1.5)
    budgets.settle("a", 0.5)
    budgets.reserve("b", board="main", ticket="T-1", role="coder", usd=0.25)
    caps = {cap["cap"]: cap for cap in answer(capfd)["caps"]}
    assert caps["day_usd"] == {"cap": "day_usd", "limit": 10, "used": 0.75, "reserved": 0.25, "ticket": None}
    assert caps["month_usd"]["limit"] is None
    assert caps["ticket_usd"]["ticket"] == "main:T-1"
    assert app(["costs"], standalone_mode=False) == 0
    said = capfd.readouterr().out
    assert "No model call since" in said
    assert "main:T-1" in said


def test_the_table_ends_with_the_total(spent: Ledger, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["costs", "--by", "role"], standalone_mode=False) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["coder", "2", "2,000", "60%", "100", "4", "0.6000"] in lines
    assert ["all", "4", "2,400", "50%", "120", "6", "0.7000"] in lines


def test_since_takes_days_spans_and_all() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert parse_since("7d", now) == datetime(2026, 11, 14, 12, tzinfo=UTC)
    assert parse_since("12h", now) == datetime(2026, 11, 21, tzinfo=UTC)
    assert parse_since("2026-11-01", now) == datetime(2026, 11, 1, tzinfo=UTC)
    assert parse_since("all", now) is None
    for odd in ("", "yesterday", "7", "2026-13-01", "-1d", "99999d x"):
        with pytest.raises(ConfigError, match="--since"):
            parse_since(odd, now)
