"""The gateway over real HTTP: answers, replays, hostile requests, the event for Prefect, and a database that is down."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import logging
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import Response

import deployments.gateway as gateway
from deployments.engine import HOST, free_port
from deployments.gateway import Accept, Place, emit_event, place_of, serve
from infra.database import Database
from infra.deliveries import LOST_AFTER, Deliveries, DeliveryTable
from infra.errors import ConfigError, Unreachable
from infra.sections import (
    BoardSection,
    GitHubBoardSection,
    GitHubForgeSection,
    JiraBoardSection,
    LinearBoardSection,
    RepositorySection,
    WebhooksSection,
)
from infra.settings import Settings
from infra.webhooks import Delivery

SECRET = "shared with the service"
TOKEN = SecretStr("token")
BOARDS: dict[str, BoardSection] = {
    "issues": GitHubBoardSection(kind="github", project="Acme/Shop", token=TOKEN),
    "eng": LinearBoardSection(kind="linear", team="ENG", token=TOKEN),
    "ops": JiraBoardSection(kind="jira", project="OPS", email="a@b.c", token=TOKEN, url="https://x.example"),
}
REPOSITORIES = {
    "shop": RepositorySection(path=Path("shop"), github=GitHubForgeSection(project="acme/shop", token=TOKEN)),
    "local": RepositorySection(path=Path("local")),
}


class Records:
    """What a ledger does, without a database: a name counts once. No await lies between look and write."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], tuple[str | None, str | None]] = {}
        self.failing: Exception | None = None

    async def accept(self, delivery: Delivery, board: str | None, ticket: str | None) -> bool:
        if self.failing is not None:
            raise self.failing
        name = (delivery.source, delivery.id)
        is_new = name not in self.seen
        self.seen.setdefault(name, (board, ticket))
        return is_new


class Gateway:
    """A served gateway with its own Prefect stand-in, which keeps the events it gets."""

    def __init__(self, url: str, port: int) -> None:
        self.url, self.port = url, port
        self.events: list[dict[str, Any]] = []
        self.sent: list[Delivery] = []
        self.credentials: list[str] = []
        self.prefect_is_away = False
        self.lost = 0
        self.client = httpx.AsyncClient(base_url=url, timeout=20)

    async def github(
        self, payload: object = None, id: str = "d-1", event: str = "issues", **more: str
    ) -> httpx.Response:
        body = payload if isinstance(payload, bytes) else json.dumps(issue() if payload is None else payload).encode()
        headers = {
            "X-Hub-Signature-256": "sha256=" + mac(body),
            "X-GitHub-Delivery": id,
            "X-GitHub-Event": event,
        } | more
        return await self.client.post("/webhooks/github", content=body, headers=headers)

    async def settle(self, reached: Callable[[], bool]) -> None:
        """Events go out after the answer."""
        async with asyncio.timeout(10):
            while not reached():
                await asyncio.sleep(0.01)


async def answering(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(httpx.ConnectError):
                await client.get("/health")
                return
            await asyncio.sleep(0.01)


def mac(body: bytes) -> str:
    return hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()


def issue(number: int = 7) -> dict[str, Any]:
    return {"action": "labeled", "issue": {"number": number}, "repository": {"full_name": "acme/shop"}}


def settings_of(port: int, **webhooks: object) -> Settings:
    secret = SecretStr(SECRET)
    names = {"github_secret": secret, "linear_secret": secret, "jira_secret": secret} | webhooks
    return Settings(
        home=Path("unused"), boards=BOARDS, repositories=REPOSITORIES, webhooks=WebhooksSection(port=port, **names)
    )


@asynccontextmanager
async def served(accept: Accept, **webhooks: object) -> AsyncIterator[Gateway]:
    port, prefect_port, stop = free_port(), free_port(), threading.Event()
    running = Gateway(f"http://{HOST}:{port}", port)

    async def prefect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        said = json.loads(await reader.readexactly(length))
        if running.prefect_is_away:
            running.lost += 1
        else:
            running.events += said
            running.credentials += [line.partition(": ")[2] for line in head.splitlines() if "authorization:" in line]
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    async def sent(delivery: Delivery) -> None:
        running.sent.append(delivery)

    server = await asyncio.start_server(prefect, HOST, prefect_port)
    serving = asyncio.create_task(
        serve(settings_of(port, **webhooks), f"http://{HOST}:{prefect_port}/api", accept, stop, sent=sent)
    )
    try:
        async with server, running.client:
            await answering(running.client)
            yield running
            stop.set()
            await asyncio.wait_for(serving, 20)
    finally:
        stop.set()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
async def running(records: Records) -> AsyncIterator[Gateway]:
    async with served(records.accept) as gateway:
        yield gateway


async def test_a_touched_ticket_is_recorded_answered_and_then_told_to_prefect(
    running: Gateway, records: Records
) -> None:
    answer = await running.github()
    assert (answer.status_code, answer.json()) == (202, {"accepted": True})
    assert records.seen == {("github", "d-1"): ("issues", "Shop-7")}
    await running.settle(lambda: bool(running.sent))
    [event] = running.events
    assert event["event"] == "darkfactory.ticket.touched"
    assert event["resource"] == {"prefect.resource.id": "darkfactory.ticket.issues.Shop-7"}
    said = event["payload"]
    assert datetime.fromisoformat(said.pop("received_at")).tzinfo is not None
    assert said == {"board": "issues", "ticket": "Shop-7", "kind": "issues.labeled", "delivery": "d-1"}
    assert [d.id for d in running.sent] == ["d-1"]


async def test_linear_and_jira_reach_their_boards(running: Gateway, records: Records) -> None:
    linear = {
        "action": "update",
        "type": "Issue",
        "webhookTimestamp": time.time_ns() // 1_000_000,
        "data": {"identifier": "ENG-4"},
    }
    jira = {"webhookEvent": "jira:issue_updated", "issue": {"key": "OPS-5"}}
    for source, payload, name in (("linear", linear, "Linear-Signature"), ("jira", jira, "X-Hub-Signature")):
        body = json.dumps(payload).encode()
        headers = {name: ("sha256=" if source == "jira" else "") + mac(body)}
        assert (await running.client.post(f"/webhooks/{source}", content=body, headers=headers)).status_code == 202
    assert list(records.seen.values()) == [("eng", "ENG-4"), ("ops", "OPS-5")]


async def test_a_pull_request_of_our_repository_gives_its_branch(running: Gateway, records: Records) -> None:
    run = {"check_suite": {"head_branch": "agent/shop-7"}}
    payload = {"action": "completed", "check_run": run, "repository": {"full_name": "acme/Shop"}}
    assert (await running.github(payload, event="check_run")).json() == {"accepted": True}
    assert records.seen == {("github", "d-1"): (None, None)}
    await running.settle(lambda: bool(running.events))
    [event] = running.events
    assert event["event"] == "darkfactory.pull-request.touched"
    assert event["resource"] == {"prefect.resource.id": "darkfactory.pull-request.shop.agent/shop-7"}
    assert (event["payload"]["repository"], event["payload"]["branch"]) == ("shop", "agent/shop-7")


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("ping", {"zen": "…", "repository": {"full_name": "acme/shop"}}),
        ("issues", issue() | {"repository": {"full_name": "stranger/shop"}}),
        ("check_run", {"check_run": {"check_suite": {"head_branch": None}}, "repository": {"full_name": "acme/shop"}}),
        ("status", {"branches": [{"name": "b"}], "repository": {"full_name": "stranger/shop"}}),
    ],
)
async def test_what_is_not_ours_is_accepted_and_dropped(
    running: Gateway, records: Records, event: str, payload: dict[str, Any]
) -> None:
    answer = await running.github(payload, event=event)
    assert answer.status_code == 202
    assert answer.json()["accepted"] is True
    assert "no ticket of a configured board" in answer.json()["dropped"]
    assert records.seen == {}


async def test_a_replayed_delivery_is_answered_but_not_told_again(running: Gateway) -> None:
    """SM10"""
    await running.github()
    again = await running.github()
    assert (again.status_code, again.json()) == (200, {"accepted": False, "reason": "seen before"})
    await running.settle(lambda: bool(running.events))
    await running.github(id="d-2")
    await running.settle(lambda: len(running.events) == 2)
    assert [e["payload"]["delivery"] for e in running.events] == ["d-1", "d-2"]


async def test_of_five_deliveries_at_once_one_is_accepted_and_told_to_prefect(running: Gateway) -> None:
    """SM10"""
    answers = await asyncio.gather(*(running.github() for _ in range(5)))
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 200, 202]
    await running.settle(lambda: bool(running.sent))
    assert len(running.events) == 1


@pytest.mark.integration
async def test_of_five_deliveries_at_once_exactly_one_is_accepted_by_the_ledger(database_url: str) -> None:
    """SM10"""
    with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as database:
        deliveries = Deliveries(database)

        async def accept(delivery: Delivery, board: str | None, ticket: str | None) -> bool:
            return await asyncio.to_thread(
                deliveries.accept, delivery.source, delivery.id, delivery.kind, board, ticket
            )

        async with served(accept) as running:
            for round in range(10):
                answers = await asyncio.gather(*(running.github(id=f"d-{round}") for _ in range(5)))
                assert sorted(a.status_code for a in answers) == [200, 200, 200, 200, 202]
            await running.settle(lambda: len(running.events) == 10)
        assert len({e["id"] for e in running.events}) == 10
        assert len(deliveries.waiting()) == 10


async def test_a_database_that_is_down_is_answered_with_retry_and_nothing_is_lost(
    running: Gateway, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    records.failing = Unreachable("the database at 'db' does not answer")
    answer = await running.github()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    assert "database" in answer.json()["error"]
    assert "ticket='Shop-7'" in caplog.text
    records.failing = None
    assert (await running.github()).status_code == 202


async def test_a_database_that_hangs_is_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "ACCEPT_SECONDS", 0.1)

    async def hang(*_: object) -> bool:
        await asyncio.sleep(60)
        return True

    async with served(hang) as running:
        assert (await running.github()).status_code == 503


async def test_a_bug_is_one_line_to_the_sender_and_the_gateway_goes_on(running: Gateway, records: Records) -> None:
    records.failing = ZeroDivisionError("secret details")
    answer = await running.github()
    assert answer.status_code == 500
    assert "secret details" not in answer.text
    records.failing = None
    assert (await running.github()).status_code == 202


@pytest.mark.parametrize("missing", [None, SecretStr(""), [SecretStr("  ")], []])
async def test_a_service_without_a_secret_is_refused_with_the_setting_to_set(
    records: Records, missing: SecretStr | list[SecretStr] | None
) -> None:
    async with served(records.accept, github_secret=missing) as running:
        answer = await running.github()
    assert answer.status_code == 404
    assert answer.json() == {"error": "no secret is configured for github, set webhooks.github_secret"}


async def test_each_of_several_secrets_of_a_service_is_taken(records: Records) -> None:
    async with served(records.accept, github_secret=[SecretStr("old"), SecretStr(SECRET)]) as running:
        assert (await running.github()).status_code == 202


BAD: list[tuple[int, str, dict[str, Any]]] = [
    (401, "X-Hub-Signature-256", {"headers": {"X-Hub-Signature-256": ""}}),
    (401, "X-Hub-Signature-256", {"headers": {"X-Hub-Signature-256": "sha256=" + "0" * 64}}),
    (401, "X-Hub-Signature-256", {"headers": {"X-Hub-Signature-256": b"\xff\xfe\x80" * 100}}),
    (400, "X-GitHub-Event", {"headers": {"X-GitHub-Event": "two words"}}),
    (400, "X-GitHub-Delivery", {"headers": {"X-GitHub-Delivery": b"\xff" * 40}}),
    (400, "Content-Type", {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
    (400, "JSON", {"body": b'{"action":'}),
    (400, "UTF-8", {"body": b"\xff"}),
    (400, "UTF-8", {"body": gzip.compress(json.dumps(issue()).encode()), "headers": {"Content-Encoding": "gzip"}}),
    (400, "nested", {"body": b"[" * 400_000}),
    (400, "twice", {"body": b'{"a":1,"a":2}'}),
    (400, "issue.number", {"body": json.dumps(issue() | {"issue": {"number": "7"}}).encode()}),
    (413, "1000000", {"body": b" " * 1_000_001}),
    (413, "1000000", {"body": b"x" * 20_000_000}),
    (404, "Not Found", {"path": "/"}),
    (404, "github, linear, jira", {"path": "/webhooks/gitlab"}),
    (404, "github, linear, jira", {"path": "/webhooks/%00%ff"}),
    (405, "Method", {"method": "GET"}),
    (405, "Method", {"method": "DELETE"}),
    (405, "Method", {"method": "POST", "path": "/health"}),
]


@pytest.mark.parametrize(("status", "word", "request_"), BAD)
async def test_a_bad_request_is_one_clear_line_and_the_gateway_answers_the_next(
    running: Gateway, records: Records, status: int, word: str, request_: dict[str, Any]
) -> None:
    body = request_.get("body", json.dumps(issue()).encode())
    headers = {"X-Hub-Signature-256": "sha256=" + mac(body), "X-GitHub-Delivery": "d-9", "X-GitHub-Event": "issues"}
    answer = await running.client.request(
        request_.get("method", "POST"),
        request_.get("path", "/webhooks/github"),
        content=body,
        headers=headers | request_.get("headers", {}),
    )
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert word in answer.json()["error"]
    assert "\n" not in answer.text
    assert SECRET not in answer.text
    assert records.seen == {}
    assert (await running.github()).status_code == 202


async def test_a_body_without_a_length_is_counted_while_it_arrives(running: Gateway) -> None:
    answer = await running.client.post("/webhooks/github", content=chunks(30))
    assert answer.status_code == 413


async def test_an_endless_body_is_cut_off(running: Gateway) -> None:
    endless = chunks(100_000)
    with suppress(httpx.TransportError):
        await running.client.post("/webhooks/github", content=endless)
    left = 0
    async for _ in endless:
        left += 1
    assert left > 90_000
    assert (await running.github()).status_code == 202


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100_000


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff\x16\x03\x01 garbage\r\n\r\n",
        b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nshort",
        b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_connection_full_of_garbage_harms_nobody_else(running: Gateway, said: bytes) -> None:
    reader, writer = await asyncio.open_connection(HOST, running.port)
    with suppress(ConnectionError):
        writer.write(said)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert (await running.github()).status_code == 202


async def test_a_body_that_never_comes_is_given_up(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "READ_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(HOST, running.port)
    writer.write(b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
    head = await asyncio.wait_for(reader.readline(), 10)
    assert b"408" in head
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("said", [b"", b"POST /webhooks/git", b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_never_ends_is_given_up(
    records: Records, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Who opens connections and sends a byte now and then holds none of them for long."""
    monkeypatch.setattr(gateway, "CONNECTION_SECONDS", 0.3)
    async with served(records.accept) as running:
        reader, writer = await asyncio.open_connection(HOST, running.port)
        writer.write(said)

        async def trickle() -> None:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle() if said else asyncio.sleep(0))
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        trickling.cancel()
        writer.close()
        assert (await running.github()).status_code == 202


async def test_an_answer_under_way_is_finished_before_its_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECTION_SECONDS", 0.5)

    async def slow(*_: object) -> bool:
        await asyncio.sleep(0.6)
        return True

    body = json.dumps(issue()).encode()
    head = f"Host: x\r\nX-Hub-Signature-256: sha256={mac(body)}\r\nX-GitHub-Delivery: d\r\nX-GitHub-Event: issues"
    async with served(slow) as running:
        reader, writer = await asyncio.open_connection(HOST, running.port)
        said = f"POST /webhooks/github HTTP/1.1\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write(said + body)
        heard = await asyncio.wait_for(reader.read(), 5)  # to its end, though nobody asked for one
        writer.close()
    assert heard.startswith(b"HTTP/1.1 202")


async def test_who_asks_and_never_reads_the_answers_is_cut_off(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot be sent would be under way without end."""

    async def long_answer(_: Request) -> Response:
        return Response(b"x" * 20_000_000)  # more than the system keeps

    monkeypatch.setattr(gateway, "CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(gateway, "_health", long_answer)
    async with served(records.accept) as running:
        with socket.create_connection((HOST, running.port)) as silent:
            silent.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(talk_on(silent), 5)


async def talk_on(silent: socket.socket) -> None:
    while True:
        silent.send(b"x")
        await asyncio.sleep(0.05)


async def test_deliveries_are_answered_in_milliseconds(running: Gateway) -> None:
    seconds = []
    for number in range(200):
        began = time.perf_counter()
        assert (await running.github(issue(number + 1), id=f"d-{number}")).status_code == 202
        seconds.append(time.perf_counter() - began)
    percentiles = statistics.quantiles(seconds, n=20)
    print(f"p50 {percentiles[9] * 1000:.1f} ms, p95 {percentiles[18] * 1000:.1f} ms")
    assert percentiles[18] < 0.25
    await running.settle(lambda: len(running.events) == 200)


async def test_the_gateway_says_that_it_lives(running: Gateway) -> None:
    answer = await running.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_an_address_in_use_is_a_mistake_in_the_settings(running: Gateway, records: Records) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.port"):
        await serve(settings_of(running.port), "http://127.0.0.1:1/api", records.accept, asyncio.Event())


async def test_no_event_is_sent_and_nothing_raised_when_prefect_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """OB4"""
    delivery = Delivery(source="github", id="d-1", kind="issues.opened")
    with caplog.at_level(logging.WARNING):
        for url in (f"http://{HOST}:{free_port()}/api", "nonsense", "http://["):
            assert not await emit_event(url, delivery, "issues", "Shop-7")
    assert caplog.text.count("ticket='Shop-7'") == 3


async def test_a_prefect_that_answers_byte_by_byte_is_given_up_before_a_repeat_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SM10: an event that is still on its way must not be sent by a second receiver, too."""
    assert timedelta(seconds=gateway.EMIT_SECONDS + gateway.ACCEPT_SECONDS) < LOST_AFTER
    monkeypatch.setattr(gateway, "EMIT_SECONDS", 0.3)

    hung_up = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for byte in b"HTTP/1.1 204 No Content\r\nX-Slow: " + 100 * b"x":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        hung_up.set()

    port, delivery = free_port(), Delivery(source="github", id="d-1", kind="issues.opened")
    async with await asyncio.start_server(drip, HOST, port):
        began = time.perf_counter()
        assert not await emit_event(f"http://{HOST}:{port}/api", delivery, "issues", "Shop-7")
        assert time.perf_counter() - began < 1.5
        await asyncio.wait_for(hung_up.wait(), 5)


async def test_a_prefect_with_a_password_is_given_it(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its own clients are: by PREFECT_API_AUTH_STRING, or by PREFECT_API_KEY."""
    monkeypatch.setenv("PREFECT_API_KEY", "key")
    await running.github(id="d-1")
    await running.settle(lambda: len(running.events) == 1)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:word")
    await running.github(id="d-2")
    await running.settle(lambda: len(running.events) == 2)
    assert running.credentials == ["bearer key", f"basic {base64.b64encode(b'user:word').decode()}".lower()]


@pytest.mark.integration
async def test_prefect_takes_the_event_and_knows_a_repeat(prefect_url: str) -> None:
    delivery = Delivery(source="github", id="d-prefect", kind="issues.labeled")
    for _ in range(2):
        assert await emit_event(prefect_url, delivery, "issues", "Shop-7")
    wanted = {"filter": {"event": {"name": ["darkfactory.ticket.touched"]}}}
    async with httpx.AsyncClient(timeout=20) as client, asyncio.timeout(60):
        while not (found := (await client.post(f"{prefect_url}/events/filter", json=wanted)).json()["events"]):
            await asyncio.sleep(0.2)
        await asyncio.sleep(2)  # a second event would be written by now
        found = (await client.post(f"{prefect_url}/events/filter", json=wanted)).json()["events"]
    assert [e["payload"]["delivery"] for e in found] == ["d-prefect"]
    assert found[0]["resource"]["prefect.resource.id"] == "darkfactory.ticket.issues.Shop-7"


@pytest.mark.parametrize(
    ("delivery", "place"),
    [
        ({"source": "github", "project": "ACME/shop", "number_or_key": 3}, Place("issues", "Shop-3")),
        ({"source": "linear", "project": "ENG", "number_or_key": "ENG-3"}, Place("eng", "ENG-3")),
        ({"source": "jira", "project": "OPS", "number_or_key": "OPS-3"}, Place("ops", "OPS-3")),
        ({"source": "jira", "project": "ENG", "number_or_key": "ENG-3"}, None),
        ({"source": "linear", "project": "eng", "number_or_key": "eng-3"}, None),
        ({"source": "github", "project": None, "number_or_key": 3}, None),
        (
            {"source": "github", "project": "acme/shop", "about": "pull-request", "number_or_key": 3},
            Place("shop", None),
        ),
        ({"source": "github", "project": "acme/shop", "about": "pull-request"}, None),
        ({"source": "github", "project": None, "about": "pull-request", "branch": "b"}, None),
        ({"source": "github", "project": "acme/shop", "about": "other"}, None),
    ],
)
def test_a_delivery_finds_its_board_or_repository(delivery: dict[str, Any], place: Place | None) -> None:
    found = Delivery(**{"id": "d", "kind": "k", "about": "ticket"} | delivery)
    assert place_of(found, BOARDS, REPOSITORIES) == place


def test_a_configured_prefix_begins_the_key() -> None:
    board = GitHubBoardSection(kind="github", project="acme/shop", token=TOKEN, key_prefix="S")
    delivery = Delivery(
        source="github", id="d", kind="k", project="acme/shop", number_or_key=3, about="ticket", at=datetime.now(UTC)
    )
    assert place_of(delivery, {"b": board}, {}) == Place("b", "S-3")


WISH = {"action": "dark-factory-refine", "client_payload": {"pr": 7}, "repository": {"full_name": "acme/shop"}}


@pytest.mark.integration
async def test_a_delivery_whose_event_got_lost_is_taken_again_and_one_whose_event_went_out_is_not(
    database_url: str,
) -> None:
    """SM10: kill -9 between record and event, or Prefect away. What no poll would find is answered 503 then."""
    with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as database:
        deliveries = Deliveries(database)

        async def accept(delivery: Delivery, board: str | None, ticket: str | None) -> bool:
            return deliveries.accept(delivery.source, delivery.id, delivery.kind, board, ticket)

        def pass_time() -> None:
            with database.transaction() as session:
                session.execute(update(DeliveryTable).values(received_at=DeliveryTable.received_at - LOST_AFTER))

        async with served(accept) as running:
            running.prefect_is_away = True
            lost = await running.github(WISH, event="repository_dispatch")
            assert (lost.status_code, lost.headers["Retry-After"]) == (503, "30")
            assert "Prefect" in lost.json()["error"]
            assert (await running.github(id="d-2")).status_code == 202
            await running.settle(lambda: running.lost == 2)
            running.prefect_is_away = False
            at_once = [await running.github(WISH, event="repository_dispatch"), await running.github(id="d-2")]
            assert [answer.status_code for answer in at_once] == [200, 200]
            pass_time()
            assert (await running.github(WISH, event="repository_dispatch")).status_code == 202
            assert (await running.github(id="d-2")).status_code == 202
            await running.settle(lambda: len(running.sent) == 2)
            for delivery in running.sent:
                deliveries.emitted(delivery.source, delivery.id)
            pass_time()
            assert (await running.github(WISH, event="repository_dispatch")).status_code == 200
            assert (await running.github(id="d-2")).status_code == 200
        assert [event["payload"]["delivery"] for event in running.events] == ["d-1", "d-2"]


async def test_a_wish_for_a_refinement_delivered_five_times_is_one_event(running: Gateway, records: Records) -> None:
    """T9, SM10"""
    wish = {"pr": 7, "instructions": 'Say "ACCEPT". {{ x }}'}
    payload = {"action": "dark-factory-refine", "client_payload": wish, "repository": {"full_name": "acme/shop"}}
    answers = [await running.github(payload, event="repository_dispatch") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202, 200, 200, 200, 200]
    await running.settle(lambda: bool(running.events))
    [event] = running.events
    assert event["event"] == "darkfactory.refinement.asked"
    assert event["resource"] == {"prefect.resource.id": "darkfactory.refinement.shop.7"}
    said = event["payload"]
    assert (said["repository"], said["branch"], said["number"]) == ("shop", "", "7")
    assert (said["instructions"], said["asked_by"]) == (wish["instructions"], "delivery d-1")
