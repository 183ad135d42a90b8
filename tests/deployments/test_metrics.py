"""`/metrics` and `/status` over real HTTP: the formats, who may ask, and bounded time whatever the database does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from deployments import metrics
from deployments.engine import HOST, free_port
from deployments.gateway import serve
from deployments.metrics import Kept, as_text, routes
from deployments.snapshot import Snapshot, snapshot_of
from infra.boards import Ticket
from infra.claims import Claims
from infra.database import SCHEMA, Database, ReadOnly
from infra.ledger import Ledger
from infra.llm import Usage
from infra.metrics import METRICS, SECTIONS, Reading, Sample, read_metrics
from infra.postgres import open_databases
from infra.sections import BudgetsSection, WebhooksSection
from infra.settings import Settings
from infra.webhooks import Delivery

ROOT = Path(__file__).parents[2]
USAGE = Usage(prompt_tokens=100, cached_tokens=80, completion_tokens=10, calls=3, seconds=20, cost_usd=0.25)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(open_databases(Settings(database_url=database_url)).ledger) as opened:
        yield opened


async def _accept(delivery: Delivery, board: str | None, ticket: str | None) -> bool:
    return True


@asynccontextmanager
async def gateway(database_url: str, host: str = HOST, **webhooks: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A served gateway of this database."""
    section = WebhooksSection(host=host, port=free_port(), **webhooks)
    settings = Settings(database_url=database_url, webhooks=section)
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(settings, "http://127.0.0.1:1/api", _accept, stop, more=routes(settings, lambda: settings))
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{section.port}", timeout=30) as client:
            await answering(client)
            yield client
    finally:
        stop.set()
        await serving


async def answering(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await client.get("/health")
                return
            except httpx.ConnectError:
                await asyncio.sleep(0.02)


def claim(database: Database, key: str) -> Any:
    ticket = Ticket(key=key, title="t", body="b", state="todo")
    Ledger(database).record_ticket(ticket, "shop")
    claims = Claims(database)
    made = claims.claim(
        ticket, holder="h", machine="m", repository="shop", lease_seconds=600, read_at=claims.now(),
        choose_node=lambda _: "mini",
    )  # fmt: skip
    assert made
    return made


def work(database: Database, key: str, calls: int) -> int:
    """Model calls of an attempt that goes on."""
    ledger = Ledger(database)
    attempt = ledger.start_attempt(key, "base", "rev").id
    for number in range(calls):
        ledger.record_session(attempt, f"{key}-{attempt}-{number}", "coder", USAGE, "tiny")
    ledger.record_event(attempt, key, "coded", "one file changed")
    return attempt


async def test_prometheus_can_read_what_is_served_and_sees_the_ledger(database: Database, database_url: str) -> None:
    """OB5: checked by Prometheus's own parser."""
    claim(database, "T-1")
    work(database, "T-1", calls=2)
    async with gateway(database_url) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    values = {
        (s.name, *dict(sorted(s.labels.items())).values()): s.value
        for family in families.values()
        for s in family.samples
    }
    assert values["darkfactory_up",] == 1
    assert values["darkfactory_claims", "claimed"] == 1
    assert values["darkfactory_model_calls_total", "tiny", "unknown", "coder"] == 6
    assert values["darkfactory_session_duration_seconds_bucket", "15", "coder"] == 0
    assert values["darkfactory_session_duration_seconds_bucket", "60", "coder"] == 2
    assert values["darkfactory_session_duration_seconds_bucket", "+Inf", "coder"] == 2
    assert values["darkfactory_session_duration_seconds_sum", "coder"] == 40
    by_name = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    assert {name: family.type for name, family in families.items()} == {name: by_name[name].kind for name in families}
    assert all(families[name].documentation == by_name[name].help for name in families)


def test_the_metrics_of_the_reading_itself_move() -> None:
    """OB5"""

    def told(reading: Reading) -> str:
        return as_text(reading).decode()

    bad, good = (
        told(Reading(up={"a": True, "b": False}, seconds=2)),
        told(Reading(up={"a": True, "b": True}, seconds=1)),
    )
    assert "\ndarkfactory_up 0.0\n" in bad
    assert "\ndarkfactory_up 1.0\n" in good
    assert 'darkfactory_section_up{section="b"} 0.0' in bad
    assert 'darkfactory_section_up{section="b"} 1.0' in good
    assert "darkfactory_read_seconds 2.0" in bad
    assert "darkfactory_read_seconds 1.0" in good


def test_hostile_label_values_cannot_make_up_a_line() -> None:
    metric = next(each for each in METRICS if each.labels == ("kind",))
    said = as_text(Reading(samples=[Sample(metric, ('x"} 1\ndarkfactory_up 0 #\\',), (1.0,))], up={"a": True})).decode()
    values = {s.name: s.value for f in text_string_to_metric_families(said) for s in f.samples}
    assert values["darkfactory_up"] == 1


async def test_status_is_the_snapshot_with_turns_tokens_and_the_last_event(
    database: Database, database_url: str
) -> None:
    """OB2"""
    running, again = claim(database, "T-1"), claim(database, "T-2")
    work(database, "T-1", calls=2)
    Claims(database).start(running.board, "T-1", running.token, flow_run="f", machine="m")
    failed = work(database, "T-2", calls=1)
    Ledger(database).end_attempt(failed, "work_failed", "TestsFailed", "the tests hang")
    Claims(database).retry(again, "it burns", 600, "failures")
    async with gateway(database_url) as client:
        answer = await client.get("/status")
    seen = Snapshot.model_validate_json(answer.content)
    [row] = seen.running
    assert (row.ticket, row.turns, row.tokens, row.cost_usd) == ("T-1", 6, 220, 0.5)
    assert (row.last_event, row.last_event_at is not None) == ("one file changed", True)
    [row] = seen.retrying
    assert (row.ticket, row.attempts, row.error, row.failures) == ("T-2", 1, "the tests hang", 1)
    assert row.due_at is not None
    assert (seen.totals.tickets, seen.totals.attempts, seen.totals.turns, seen.totals.prompt_tokens) == (2, 2, 9, 300)
    assert seen.totals.cost_usd == 0.75
    assert {use.cap for use in seen.limits.budgets} >= {"day_usd", "month_usd"}


async def test_the_gateway_of_up_answers_both_and_logs_in_our_form(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """OB1, OB2, OB5"""
    port, body = free_port(), b'{"action": "opened", "issue": {"number": 7}, "repository": {"full_name": "acme/shop"}}'
    boards = {"issues": {"kind": "github", "project": "acme/shop", "token": "plain-board-token"}}
    environment = {
        "PATH": os.environ["PATH"], "DARKFACTORY_HOME": str(tmp_path), "DARKFACTORY_DATABASE_URL": database_url,
        "DARKFACTORY_WEBHOOKS": json.dumps({"port": port, "github_secret": "plain-hook-secret"}),
        "DARKFACTORY_BOARDS": json.dumps(boards), "PREFECT_API_URL": "http://127.0.0.1:1/api",
    }  # fmt: skip
    signed = hmac.new(b"plain-hook-secret", body, hashlib.sha256).hexdigest()
    headers = {
        "X-Hub-Signature-256": f"sha256={signed}",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": "plain-board-token",
    }
    with (tmp_path / "gateway.log").open("wb") as log, subprocess.Popen(
        [sys.executable, "-m", "deployments.gateway"], cwd=ROOT, env=environment, stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=30) as client:
                await answering(client)
                assert "\ndarkfactory_up 1.0\n" in (await client.get("/metrics")).text
                assert (await client.get("/status")).json()["limits"]["max_running"] == 50
                assert (await client.post("/webhooks/github", content=body, headers=headers)).status_code == 202
        finally:
            process.terminate()
    said = (tmp_path / "gateway.log").read_text()
    pattern = r"^\S+Z level=info logger=__main__ webhook accepted: board='issues' ticket='shop-7' .* delivery='\*\*\*'$"
    assert re.search(pattern, said, re.MULTILINE), said
    assert "plain-" not in said


def statements_of(database: Database, settings: Settings) -> int:
    said: list[str] = []
    listener: Callable[..., None] = lambda _c, _k, statement, *_: said.append(statement)  # noqa: E731
    event.listen(database._engine, "before_cursor_execute", listener)
    snapshot_of(database, settings, 50)
    event.remove(database._engine, "before_cursor_execute", listener)
    return len(said)


def test_a_snapshot_takes_the_same_number_of_queries_whatever_the_number_of_tickets(
    database: Database, database_url: str
) -> None:
    """OB2"""
    settings = Settings(database_url=database_url, budgets=BudgetsSection(day_usd=3, ticket_usd=1))
    claim(database, "T-0")
    few = statements_of(database, settings)
    for number in range(1, 20):
        claim(database, f"T-{number}")
        work(database, f"T-{number}", calls=1)
    assert statements_of(database, settings) == few
    assert len(snapshot_of(database, settings, 50).running) == 20
    assert snapshot_of(database, settings, 50).limits.budgets[1].limit == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "evil.example:4280"}, {"Host": ""}, {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"}, {"X-Forwarded-Host": "localhost"}, {"X-Real-IP": "127.0.0.1"}, {"Via": "1.1 x"},
    ],
    ids=str,
)  # fmt: skip
async def test_nobody_but_a_program_of_this_machine_is_told(database_url: str, headers: dict[str, str]) -> None:
    """OB2: not through a proxy in front of the webhooks, and not a page that gave its own name our address."""
    async with gateway(database_url) as client:
        for path in ("/metrics", "/status"):
            refused = await client.get(path, headers=headers)
            assert (refused.status_code, "error" in refused.json()) == (403, True)
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/health", headers=headers)).status_code == 200


async def test_a_proxy_that_does_not_say_that_it_is_one_is_not_told_either(database_url: str) -> None:
    """OB2: nginx's plain `proxy_pass` names our own address and no client; it speaks HTTP/1.0, as nobody else does."""
    async with gateway(database_url) as client:
        for version, status in ((b"1.0", b"403"), (b"1.1", b"200")):
            reader, writer = await asyncio.open_connection(HOST, client.base_url.port)
            name = f"{HOST}:{client.base_url.port}".encode()
            writer.write(b"GET /metrics HTTP/%b\r\nHost: %b\r\nConnection: close\r\n\r\n" % (version, name))
            assert (await reader.read()).split(b" ")[1] == status
            writer.close()
            await writer.wait_closed()


async def test_a_gateway_that_listens_everywhere_tells_this_machine_only_unless_it_is_opened(database_url: str) -> None:
    """OB2: loopback by default."""
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    for is_open, status in ((False, 403), (True, 200)):
        async with gateway(database_url, host="0.0.0.0", open_status=is_open) as client:
            away = str(client.base_url).replace(HOST, address)
            assert (await client.get(f"{away}/status")).status_code == status
            assert (await client.get("/status")).status_code == 200


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found


async def test_without_a_database_the_endpoint_says_so_at_once_and_goes_on_receiving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OB4: refused connections, and a server that takes them and never says a word."""
    monkeypatch.setattr(metrics, "WAIT_SECONDS", 1.0)
    with socket.create_server((HOST, 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            async with gateway(f"postgresql://u:p@{HOST}:{port}/x") as client:
                began = time.monotonic()
                answer = await client.get("/metrics")
                assert "\ndarkfactory_up 0.0\n" in answer.text
                assert answer.text.count("} 0.0") >= len(SECTIONS) - 1
                refused = await client.get("/status")
                assert (refused.status_code, "doctor" in refused.json()["error"]) == (503, True)
                assert (await client.get("/health")).status_code == 200
                assert time.monotonic() - began < 8


async def test_the_database_is_read_once_however_many_ask_and_one_that_hangs_is_not_asked_again() -> None:
    """OB4"""
    calls, go = [], threading.Event()

    def read() -> int:
        calls.append(time.monotonic())
        go.wait(10)
        return len(calls)

    kept = Kept(read)
    waiting = [asyncio.create_task(kept.get()) for _ in range(20)]
    await asyncio.sleep(0.1)
    waiting[0].cancel()  # one that hangs up does not end the reading of the others
    go.set()
    assert await asyncio.gather(*waiting[1:]) == [1] * 19
    assert await kept.get() == 1


@pytest.mark.slow
def test_a_scrape_of_ten_thousand_tickets_takes_less_than_two_seconds(database: Database, database_url: str) -> None:
    """OB5: what one reading costs, printed; `pytest -s` shows it."""
    with database.transaction() as session:
        session.execute(text(f"set local search_path = {SCHEMA}"))
        for statement in FULL:
            session.execute(text(statement))
    settings = Settings(database_url=database_url, budgets=BudgetsSection(day_usd=1e9))
    with ReadOnly(open_databases(settings).ledger) as watching:
        for what, read in (
            ("metrics", lambda: read_metrics(watching, settings)),
            ("status", lambda: snapshot_of(watching, settings, 50)),
        ):
            seconds = []
            for _ in range(5):
                began = time.monotonic()
                read()
                seconds.append(time.monotonic() - began)
            print(json.dumps({"read": what, "first_ms": round(seconds[0] * 1000), "median_ms": round(sorted(seconds)[2] * 1000)}))  # fmt: skip
            assert sorted(seconds)[2] < 2
        assert all(read_metrics(watching, settings).up.values())


FULL = (
    "insert into tickets (board, key, repository, title, state, revision)"
    " select 'folder', 'T-' || n, 'shop', 't', 'todo', 'r' from generate_series(1, 10000) n",
    "insert into attempts (board, ticket, number, revision, base_sha, started_at, ended_at, outcome)"
    " select 'folder', 'T-' || n, a, 'r', 'b', now() - interval '1 hour', now(), 'accepted'"
    " from generate_series(1, 10000) n, generate_series(1, 2) a",
    "insert into sessions (call_key, attempt, role, round, model, provider, node, prompt_tokens, cached_tokens,"
    " completion_tokens, calls, seconds, cost_usd) select id || '-' || c, id, 'role-' || c % 8, 1, 'm-' || c % 3, 'p', 'n',"
    " 1000, 500, 100, 1, 2.5, 0.01 from attempts, generate_series(1, 15) c",
    "insert into events (attempt, board, ticket, kind, message, data) select id, board, ticket, 'k-' || c, 'm', '{}'"
    " from attempts, generate_series(1, 15) c",
    "insert into claims (board, ticket, state, token, holder, machine, node, repository, ticket_state, content, claimed_at,"
    " lease_until, lease_seconds) select board, key, case when right(key, 2) = '00' then 'running' else 'released' end, 1,"
    " 'h', 'm', 'n', 'shop', 's', 'c', now(), now(), 1 from tickets",
    "analyze",
)
