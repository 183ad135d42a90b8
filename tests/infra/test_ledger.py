"""The ledger on a real PostgreSQL: migrations, attempts that resume, calls that count once, texts without secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import infra.migrations
from infra.boards import Ticket
from infra.database import SCHEMA, Table
from infra.errors import ConfigError, Unreachable
from infra.ledger import Ledger, open_ledger
from infra.llm import Usage
from infra.pull_requests import PullRequest
from infra.settings import Settings

TICKET = Ticket(key="T-1", title="Add a flag", body="Please.", state="todo")
USAGE = Usage(prompt_tokens=100, cached_tokens=80, completion_tokens=10, calls=1, seconds=2.5, cost_usd=0.001)


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with open_ledger(Settings(database_url=database_url)) as opened:
        opened.record_ticket(TICKET, "shop")
        yield opened


def test_migrations_make_exactly_the_tables_of_the_models(empty_database_url: str) -> None:
    open_ledger(Settings(database_url=empty_database_url)).close()
    engine = create_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        options = {
            "include_schemas": True,
            "version_table_schema": SCHEMA,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
        }
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata)
    engine.dispose()
    assert differences == []


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", infra.migrations.__path__[0])
    assert ScriptDirectory.from_config(config).get_heads() == [infra.migrations.HEAD]


def test_racing_openers_migrate_once_and_leave_foreign_tables_alone(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("create table alembic_version (version_num text)")  # as Prefect has it, in `public`
        connection.execute("insert into alembic_version values ('of-prefect')")
    settings = Settings(database_url=empty_database_url)
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(lambda _: open_ledger(settings), range(4)):
            opened.close()
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("select version_num from public.alembic_version").fetchall() == [("of-prefect",)]
        assert connection.execute(f"select version_num from {SCHEMA}.alembic_version").fetchall() == [
            (infra.migrations.HEAD,)
        ]


def test_tables_without_a_schema_still_land_in_public(database_url: str) -> None:
    """Prefect names no schema; ours must not come first on the search path, whatever the user is called."""
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select current_user, current_schema").fetchone() == ("darkfactory", "public")


def test_a_ledger_of_a_newer_version_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("update darkfactory_ledger.alembic_version set version_num = '9999'")
    with pytest.raises(ConfigError, match="newer darkfactory"):
        open_ledger(Settings(database_url=database_url))


def test_an_attempt_that_has_not_ended_is_resumed_and_the_next_one_counts_up(ledger: Ledger) -> None:
    first = ledger.start_attempt("T-1", "base", "rev")
    assert ledger.start_attempt("T-1", "base", "rev") == first
    ledger.end_attempt(first.id, "infra_failed", "RateLimited", "429")
    second = ledger.start_attempt("T-1", "base", "rev")
    assert (first.number, second.number) == (1, 2)
    assert second.id != first.id


def test_a_changed_ticket_or_base_starts_a_new_attempt_and_cancels_the_open_one(ledger: Ledger) -> None:
    ledger.start_attempt("T-1", "base", "rev")
    ledger.start_attempt("T-1", "base", "rev-2")
    ledger.start_attempt("T-1", "base-2", "rev-2")
    attempts = ledger.history("T-1").attempts
    assert [(a.number, a.outcome) for a in attempts] == [(1, "cancelled"), (2, "cancelled"), (3, None)]


def test_two_processes_that_start_the_same_ticket_get_the_same_attempt(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {attempt.id for attempt in pool.map(lambda _: ledger.start_attempt("T-1", "base", "rev"), range(16))}
    assert len(ids) == 1


def test_the_first_end_of_an_attempt_stays(ledger: Ledger) -> None:
    attempt = ledger.start_attempt("T-1", "base", "rev")
    ledger.end_attempt(attempt.id, "accepted")
    ended = ledger.history("T-1").attempts
    ledger.end_attempt(attempt.id, "work_failed", "TestsFailed", "late")
    assert ledger.history("T-1").attempts == ended
    assert ended[0].outcome == "accepted"


def test_only_failures_that_the_ticket_caused_burn_attempts(ledger: Ledger) -> None:
    """RB8: faults of machines and providers cost zero attempts."""
    for outcome in ("infra_failed", "cancelled", "accepted", "work_failed", "rejected"):
        ledger.end_attempt(ledger.start_attempt("T-1", "base", "rev").id, outcome)
    assert ledger.burnt_attempts("T-1") == 2


def test_an_attempt_of_an_unknown_ticket_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="'T-9'"):
        ledger.start_attempt("T-9", "base", "rev")


def test_a_call_that_is_recorded_again_counts_once(ledger: Ledger) -> None:
    """OB3: never double-counted; USD per ticket and role, persisted."""
    attempt = ledger.start_attempt("T-1", "base", "rev")
    for _ in range(3):
        ledger.record_session(attempt.id, "call-1", "planner", USAGE, "tiny")
    ledger.record_session(attempt.id, "call-2", "coder", USAGE, "tiny", candidate=2, round=1)
    ledger.record_session(attempt.id, "call-3", "coder", USAGE, "tiny", candidate=2, round=1)
    assert ledger.usage_by_role("T-1") == {"planner": USAGE, "coder": USAGE + USAGE}
    assert ledger.usage_of("T-1") == USAGE + USAGE + USAGE
    assert ledger.usage_of("T-2") == Usage()


def test_what_was_written_survives_kill_9_of_the_writer(database_url: str, ledger: Ledger) -> None:
    code = (
        "import os, signal, sys; from infra.ledger import *; from infra.settings import Settings; "
        "l = open_ledger(Settings(database_url=sys.argv[1])); a = l.start_attempt('T-1', 'base', 'rev'); "
        "l.record_session(a.id, 'call-1', 'coder', Usage(calls=1), 'tiny'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, database_url], timeout=60, check=False)
    assert killed.returncode == -9
    attempt = ledger.start_attempt("T-1", "base", "rev")
    ledger.record_session(attempt.id, "call-1", "coder", Usage(calls=1), "tiny")
    assert attempt.number == 1
    assert ledger.usage_of("T-1").calls == 1


def test_status_shows_one_row_per_ticket_with_the_last_of_everything(ledger: Ledger) -> None:
    ledger.record_ticket(TICKET.model_copy(update={"key": "T-2", "title": "Untouched"}), "shop")
    attempt = ledger.start_attempt("T-1", "base", "rev")
    ledger.record_session(attempt.id, "call-1", "coder", USAGE, "tiny")
    ledger.record_verdict(attempt.id, 0, "sha-0", "REVISE", ["not yet"], {})
    ledger.record_verdict(attempt.id, 1, "sha-1", "ACCEPT", ["a test turned green"], {})
    ledger.record_event(attempt.id, "T-1", "published", "pull request opened")
    ledger.record_pull_request("T-1", _pull_request("sha-1"))
    top, other = ledger.overview()
    assert (top.key, top.attempts, top.decision, top.pull_request) == ("T-1", 1, "ACCEPT", "file:///pr.md")
    assert (top.tokens, top.cached_share, top.seconds, top.cost_usd) == (110, 0.8, 2.5, 0.001)
    assert top.last_event == "pull request opened"
    assert (other.key, other.attempts, other.tokens, other.decision) == ("T-2", 0, 0, None)
    assert top.updated_at > other.updated_at
    assert [row.key for row in ledger.overview(limit=1)] == ["T-1"]


def test_repeated_verdicts_and_pull_requests_are_replaced_not_doubled(ledger: Ledger) -> None:
    attempt = ledger.start_attempt("T-1", "base", "rev")
    for sha in ("old", "new"):
        ledger.record_verdict(attempt.id, 1, sha, "REJECT", ["no"], {"files": ["a.py"], "seconds": float("nan")})
        ledger.record_pull_request("T-1", _pull_request(sha))
    history = ledger.history("T-1")
    assert [(v.candidate_sha, v.evidence) for v in history.verdicts] == [("new", {"files": ["a.py"], "seconds": None})]
    assert history.pull_request is not None
    assert history.pull_request.head_sha == "new"


def test_a_ticket_seen_again_unchanged_keeps_its_time_and_a_changed_one_is_updated(ledger: Ledger) -> None:
    before = ledger.overview()[0]
    ledger.record_ticket(TICKET, "shop")
    assert ledger.overview()[0] == before
    ledger.record_ticket(TICKET.model_copy(update={"state": "done"}), "shop")
    after = ledger.overview()[0]
    assert after.state == "done"
    assert after.updated_at > before.updated_at


def test_tickets_with_the_same_key_on_two_boards_are_kept_apart(database_url: str, ledger: Ledger) -> None:
    with open_ledger(Settings(database_url=database_url), board="linear") as other:
        other.record_ticket(TICKET, "shop")
        assert other.start_attempt("T-1", "base", "rev").id != ledger.start_attempt("T-1", "base", "rev").id
        assert len(other.overview()) == 1


def test_events_hold_no_secrets_and_survive_hostile_text(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """OB1: no secrets. NUL and lone surrogates, which PostgreSQL refuses, come from hostile test output."""
    monkeypatch.setenv("SHOP_API_TOKEN", "tok-12345678")
    data = {"output": ["tok-12345678", "nul \0", "lone \ud800"], "nested": {"tok-12345678": 1}, "cost": float("inf")}
    ledger.record_event(None, "T-1", "tested", "sent tok-12345678 \0", data)
    event = ledger.history("T-1").events[0]
    assert event.message == "sent *** \ufffd"
    assert event.data == {"output": ["***", "nul \ufffd", "lone ?"], "nested": {"***": 1}, "cost": None}


def test_history_of_an_unknown_ticket_is_a_clear_error(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="'T-9' was never worked on"):
        ledger.history("T-9")


def test_a_database_that_goes_away_is_unreachable_and_the_next_call_connects_anew(
    ledger: Ledger, database_url: str
) -> None:
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
    name = database_url.rsplit("/", 1)[1]
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(Unreachable), ledger._transaction() as session:  # noqa: PT012 - cut in mid-transaction
            session.connection()
            connection.execute(kill, (name,))
            session.connection().exec_driver_sql("select pg_sleep(5)")
        connection.execute(kill, (name,))
    assert ledger.overview()[0].key == "T-1"


def _pull_request(sha: str) -> PullRequest:
    return PullRequest(branch="agent/T-1", title="t", body="b", base="main", head_sha=sha, url="file:///pr.md")


def test_no_two_kinds_of_lock_share_a_number() -> None:
    """PostgreSQL's advisory locks have one space of numbers for everybody."""
    root = Path(infra.migrations.__file__).parents[2]
    files = [path for layer in ("infra", "tasks") for path in (root / layer).rglob("*.py")]
    numbers = [number for path in files for number in re.findall(r"LOCK = ([\d_]{6,})", path.read_text())]
    assert len(numbers) > 10
    assert len(numbers) == len(set(numbers))
