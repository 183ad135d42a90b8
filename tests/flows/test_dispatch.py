"""Ticks of the dispatcher on a real folder board, ledger and Prefect server; the launched runs are worked in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun

from deployments.definitions import apply, ensure_pool, node_table
from infra.errors import FactoryError, RateLimited
from infra.fleet import pool_name
from infra.llm.scripted import Fault
from tests.flows.conftest import Factory
from tests.shop import git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
LIMIT = "You've hit your limit · resets 4am (America/Chicago)"


class Clock:
    """Wall time that a test moves."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class Night:
    """A factory with one node, ticks, and a worker that is this process."""

    def __init__(self, factory: Factory, clock: Clock, node: str) -> None:
        self.factory, self.clock, self.node = factory, clock, node
        self.worked: set[UUID] = set()

    async def join(self, slots: int, labels: tuple[str, ...] = ()) -> None:
        from tasks import services

        services.fleet().join(
            self.node, slots=slots, labels=labels, machine="m", provider=services.provider(), lease_seconds=1e9
        )
        async with get_client() as client:
            await ensure_pool(client, pool_name(self.node), slots + 1)
            for definition in node_table(self.node):
                await apply(client, definition, str(self.factory.home))

    async def tick(self, *only: str) -> Any:
        from flows.dispatch import dispatch_tickets

        self.factory.forget()
        done = await dispatch_tickets(*only)
        print("tick", done)
        return done

    async def runs(self) -> list[FlowRun]:
        async with get_client() as client:
            mine = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool_name(self.node)]))
            runs = await client.read_flow_runs(work_pool_filter=mine, limit=200)
        return [run for run in runs if "token" in run.parameters]

    async def work(self) -> list[str]:
        """Run what was launched and not yet worked on, as the node's worker would. Returns how each ended."""
        from flows.ticket import work_ticket

        endings = []
        for run in sorted(await self.runs(), key=lambda r: r.name):
            if run.id in self.worked:
                continue
            self.worked.add(run.id)
            self.factory.forget()
            try:
                endings.append((await work_ticket(**run.parameters)).decision)
            except FactoryError as error:
                endings.append(type(error).__name__)
        return endings

    def claim(self, key: str) -> Any:
        from tasks import services

        return services.claims().find("folder", key)


@pytest.fixture
async def night(factory: Factory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Night:
    from tasks import services

    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps({"shop": {"path": str(factory.repository)}}))
    clock = Clock(datetime.now(UTC))
    monkeypatch.setattr(services, "clock", clock)
    factory.board.mkdir(parents=True, exist_ok=True)
    factory.forget()
    return Night(factory, clock, f"n{abs(hash(str(tmp_path))) % 10**9}")


def ticket(night: Night, key: str, **front: object) -> Path:
    path = write_ticket(night.factory.board, key)
    head = "".join(f"{name}: {json.dumps(value)}\n" for name, value in {"state": "todo", **front}.items())
    path.write_text(path.read_text().replace("state: ready\n", head, 1))
    return path


def state_of(night: Night, key: str) -> str:
    text = (night.factory.board / f"{key}.md").read_text()
    return next(line for line in text.splitlines() if line.startswith("state:")).removeprefix("state: ").strip("\"'")


async def test_tickets_go_out_in_order_while_slots_last_and_only_once(night: Night) -> None:
    """SM2, SM4, SM5, SM11: the claim is on the ticket before the run starts."""
    await night.join(slots=2)
    for key, priority in (("a", 3), ("b", 1), ("c", 2)):
        ticket(night, key, priority=priority)
    first = await night.tick()
    assert [launched.ticket for launched in first.launched] == ["b", "c"], first
    assert first.skipped == {"a": "no slots"}
    assert (
        f"Claimed by node {night.node} for attempt 1; the claim is void after 20"
        in (night.factory.board / "b.md").read_text()
    )
    again = await night.tick()
    assert again.launched == ()
    assert len(await night.runs()) == 2
    assert await night.work() == ["ACCEPT", "ACCEPT"]
    assert state_of(night, "b") == "in review"
    assert [launched.ticket for launched in (await night.tick()).launched] == ["a"]


async def test_events_and_a_tick_in_the_same_second_start_one_run(night: Night) -> None:
    """SM10: two events that tell the same, and the schedule; the receiver lets only one of five deliveries through."""
    from flows.dispatch import dispatch_tickets

    await night.join(slots=9)
    ticket(night, "one")
    night.factory.forget()
    done = await asyncio.gather(*(dispatch_tickets(*only) for only in [("folder", "one")] * 2 + [()]))
    assert sum(len(each.launched) for each in done) == 1
    assert len(await night.runs()) == 1


async def test_a_bad_configuration_stops_launches_but_not_reconciliation(night: Night) -> None:
    """SM2, CF1: people are told what is wrong, and what is closed meanwhile is still stopped."""
    settings = night.factory.home / "factory.yaml"
    settings.write_text("seed: 1\n")
    await night.join(slots=9)
    path = ticket(night, "one")
    assert len((await night.tick()).launched) == 1
    settings.write_text("seed: 1\nbords: {}\n")
    ticket(night, "two")
    path.write_text(path.read_text().replace('state: "todo"', "state: done"))
    done = await night.tick()
    assert (done.launched, done.stopped) == ((), ("one",))
    assert "bords" in done.problem
    settings.write_text("seed: 1\n")
    assert [launched.ticket for launched in (await night.tick()).launched] == ["two"]


@pytest.mark.slow
async def test_the_tickets_of_a_session_get_a_pull_request_each_and_one_that_is_lost_stops_no_other(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: one run for three small tickets; one of them is taken away before its turn comes."""
    from flows.ticket import work_tickets
    from tasks import services

    monkeypatch.setenv("DARKFACTORY_DISPATCH", json.dumps({"batch": 4}))
    await night.join(slots=1)
    for key in ("a", "b", "c"):
        ticket(night, key)
    assert len({launched.flow_run for launched in (await night.tick()).launched}) == 1
    async with get_client() as client:
        mine = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool_name(night.node)]))
        [run] = [r for r in await client.read_flow_runs(work_pool_filter=mine) if "tickets" in r.parameters]
    services.claims().requeue(night.claim("b"), "taken away")
    outcomes = await work_tickets(**run.parameters)
    assert [(outcome.ticket, outcome.decision) for outcome in outcomes] == [("a", "ACCEPT"), ("c", "ACCEPT")]
    pulls = sorted(path.stem for path in (night.factory.home / "forge/shop/pulls").glob("*.md"))
    assert pulls == ["agent--a", "agent--c"]
    assert [night.claim(key).state for key in ("a", "b", "c")] == ["released", "retry-queued", "released"]


async def test_what_is_not_for_us_is_left_alone(night: Night) -> None:
    """SM3, SM12, I3: closed, blocked, blocked in a circle, unroutable; each is said once."""
    await night.join(slots=9)
    ticket(night, "open")
    ticket(night, "waits", blocked_by=["open"])
    ticket(night, "free", blocked_by=["finished"])
    ticket(night, "finished", state="done")
    ticket(night, "egg", blocked_by=["hen"])
    ticket(night, "hen", blocked_by=["egg"])
    ticket(night, "lost", repository="nowhere")
    done = await night.tick()
    assert {launched.ticket for launched in done.launched} == {"open", "free"}
    assert set(done.skipped) == {"waits", "egg", "hen", "lost"}
    await night.tick()
    text = (night.factory.board / "lost.md").read_text()
    assert text.count("Not worked on: ") == 1
    assert (night.factory.board / "egg.md").read_text().count("block each other") == 1
    (night.factory.board / "lost.md").write_text(text.replace("nowhere", "shop"))
    assert [launched.ticket for launched in (await night.tick()).launched] == ["lost"]


@pytest.mark.faults
async def test_a_board_that_never_changes_gets_one_pull_request_per_ticket(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 124-PR night: 20 scans of a board that takes no state change."""
    from infra.boards.folder import FolderBoard

    monkeypatch.setattr(FolderBoard, "move", lambda *_: None)
    await night.join(slots=9)
    for key in ("one", "two"):
        ticket(night, key)
    for _ in range(20):
        await night.tick()
        await night.work()
        night.clock.move(minutes=2)
    assert len(await night.runs()) == 2
    assert state_of(night, "one") == "todo"
    assert len(list((night.factory.home / "forge/shop/pulls").glob("*.md"))) == 2
    assert git(night.factory.home / "forge/shop/repo.git", "for-each-ref", "--format=%(refname:short)").split() == [
        "agent/one", "agent/two", "main",
    ]  # fmt: skip


async def test_a_lost_ledger_does_not_make_a_second_pull_request(night: Night) -> None:
    """I4: the pull request that is there is shown."""
    from tasks import services

    await night.join(slots=2)
    path = ticket(night, "one")
    written = path.read_text()
    await night.tick()
    assert await night.work() == ["ACCEPT"]
    path.write_text(written)
    with services.database().transaction() as session:
        session.connection().exec_driver_sql("truncate darkfactory_ledger.claims")
    assert (await night.tick()).launched == ()
    assert state_of(night, "one") == "in review"
    assert "There is a pull request already" not in written
    assert len(await night.runs()) == 1


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real HTTP server that takes notifications: its address and what it was told."""
    told: list[dict[str, Any]] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", told
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.faults
async def test_a_night_of_rate_limits_burns_nothing_and_goes_on_by_itself(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 46-session night (RB8, I7): one session dies, people are told once, the provider is paused until 4am, and then
    the work is done."""
    with listening() as (url, told):
        monkeypatch.setenv("DARKFACTORY_NOTIFY", json.dumps({"webhook": url}))
        await the_night_of_46_sessions(night)
    assert len(told) == 1
    assert "is paused" in json.dumps(told[0])
    assert "hit your limit" in json.dumps(told[0])


async def the_night_of_46_sessions(night: Night) -> None:
    from tasks import services

    night.factory.model.rules = script(
        architect=Fault(kind="status", status=429, body={"error": {"message": LIMIT, "type": "rate_limit_error"}})
    )
    await night.join(slots=1)
    for n in range(3):
        ticket(night, f"t{n}")
    for _ in range(46):
        await night.tick()
        await night.work()
        night.clock.move(seconds=120)
    assert len(await night.runs()) == 1, "one session met the limit, and no other was launched"
    assert services.ledger().burnt_attempts("t0") == 0
    (pause,) = services.pauses().active().values()
    assert pause.scope.startswith("provider:openai@")
    assert pause.until is not None
    assert pause.until.astimezone(_zone("America/Chicago")).strftime("%H:%M") == "04:00"
    assert {state_of(night, f"t{n}") for n in range(3)} == {"todo"}

    night.factory.model.rules = script()
    night.clock.now = pause.until + timedelta(seconds=1)
    for _ in range(3):
        await night.tick()
        assert await night.work() == ["ACCEPT"]
        night.clock.move(seconds=120)
    assert {state_of(night, f"t{n}") for n in range(3)} == {"in review"}
    assert RateLimited.category == "rate-limited"


def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


async def test_a_ticket_that_changed_since_it_was_fetched_is_not_launched_and_leaves_no_claim(night: Night) -> None:
    """SM6"""
    from tasks import dispatching

    await night.join(slots=3)
    closed, relabelled = ticket(night, "closed"), ticket(night, "moved")
    ticket(night, "fine")
    night.factory.forget()
    waiting, _ = dispatching._fetch(None)
    assert len(waiting) == 3
    closed.write_text(closed.read_text().replace('state: "todo"', "state: done"))
    relabelled.write_text(relabelled.read_text().replace('state: "todo"', "state: backlog"))
    launched, skipped = await dispatching.launch.fn(waiting)
    assert [run.ticket for run in launched] == ["fine"]
    assert set(skipped) == {"closed", "moved"}
    assert (night.claim("closed"), night.claim("moved")) == (None, None)


async def test_a_retry_that_is_due_reads_the_ticket_again_first(night: Night) -> None:
    """RB4, RB5: gone or closed: released; no slot: it waits, and waiting costs no attempt."""
    from tasks import services

    await night.join(slots=3)
    paths = {key: ticket(night, key) for key in ("gone", "closed", "waits")}
    await night.tick()
    for key in paths:
        claim = night.claim(key)
        services.claims().retry(claim, "a fault", 60, "infra_faults")
    paths["gone"].unlink()
    paths["closed"].write_text(paths["closed"].read_text().replace('state: "todo"', "state: done"))
    services.fleet().set_state(night.node, "draining")
    night.clock.move(seconds=61)
    for _ in range(3):
        done = await night.tick()
    assert {key: night.claim(key).state for key in paths} == {
        "gone": "released", "closed": "released", "waits": "retry-queued",
    }  # fmt: skip
    assert done.skipped["waits"].startswith("no node")
    assert (night.claim("waits").failures, night.claim("waits").infra_faults) == (0, 1)


async def test_a_ticket_that_is_closed_while_it_waits_for_its_node_does_not_run(night: Night) -> None:
    """RC3, I11"""
    await night.join(slots=2)
    path = ticket(night, "one")
    await night.tick()
    path.write_text(path.read_text().replace('state: "todo"', "state: done"))
    assert (await night.tick()).stopped == ("one",)
    assert await night.work() == ["FencedOff"]
    assert night.factory.model.calls == 0


@pytest.mark.slow
async def test_a_dead_node_gives_its_tickets_back(night: Night) -> None:
    """I10, SM11: what never started goes out again as a new launch; the old one is fenced off."""
    from tasks import services

    await night.join(slots=1)
    ticket(night, "one")
    await night.tick()
    dead, night.node = night.node, f"{night.node}b"
    await night.join(slots=1)
    services.fleet().set_state(dead, "left")
    done = await night.tick()
    assert [(launched.node, launched.token) for launched in done.launched] == [(night.node, 3)]
    assert await night.work() == ["ACCEPT"]


async def test_a_node_without_the_repository_gives_the_ticket_back_with_the_reason(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I10, RB8: its factory.yaml is not the dispatcher's. Nothing is burnt, and `darkfactory status` shows why it waits."""
    await night.join(slots=1)
    ticket(night, "one")
    await night.tick()
    with monkeypatch.context() as node:
        node.setenv("DARKFACTORY_REPOSITORIES", "{}")
        assert await night.work() == ["ConfigError"]
    claim = night.claim("one")
    assert (claim.state, claim.failures, claim.infra_faults) == ("retry-queued", 0, 1)
    assert "repository 'shop' is neither a path nor configured" in claim.reason


@pytest.mark.slow
async def test_after_three_failures_it_is_over_and_an_edit_starts_anew(night: Night) -> None:
    """RB7, I6: three attempts that the ticket caused, each said on it, then none until a person acts."""
    from tasks import services

    night.factory.model.rules = script(coder="I do not know.")
    await night.join(slots=1)
    path = ticket(night, "one")
    endings = []
    for _ in range(5):
        await night.tick()
        endings += await night.work()
        night.clock.move(seconds=400)
    assert endings == ["REJECT"] * 3
    assert services.ledger().burnt_attempts("one") == 3
    assert state_of(night, "one") == "rejected"
    assert [f"No pull request after attempt {n}" in path.read_text() for n in (1, 2, 3, 4)] == [True, True, True, False]
    night.factory.model.rules = script()
    edited = path.read_text().replace("state: rejected", "state: todo").replace("should cost 180", "has to cost 180")
    path.write_text(edited)
    await night.tick()
    assert await night.work() == ["ACCEPT"]


@pytest.mark.slow
async def test_dispatch_pauses_itself_when_nearly_all_launches_die_at_once_and_one_probe_reopens_it(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RB9: the repository's tests do not start any more, so every run fails within seconds."""
    from tasks import services
    from tasks.dispatching import PROBE_AFTER_SECONDS

    monkeypatch.setenv("DARKFACTORY_DISPATCH", json.dumps({"fail_fast_seconds": 60, "fail_fast_min_launches": 3}))
    repository = night.factory.repository
    workflow = repository / "WORKFLOW.md"
    workflow.write_text("---\ntest: no-such-program\n---\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "break the tests")
    await night.join(slots=9)
    for n in range(3):
        ticket(night, f"t{n}")
    await night.tick()
    assert await night.work() == ["TestsFailed"] * 3
    night.clock.move(seconds=20)
    ticket(night, "next")
    assert (await night.tick()).launched == ()
    (pause,) = services.pauses().active().values()
    assert pause.scope == "dispatch"
    assert "3 of the 3 launches" in pause.reason
    workflow.unlink()
    git(repository, "commit", "-qam", "mend the tests")
    night.clock.move(seconds=PROBE_AFTER_SECONDS)
    assert len((await night.tick()).launched) == 1
    assert (await night.tick()).launched == (), "one probe"
    assert await night.work() == ["ACCEPT"]
    assert services.pauses().active() == {}
    assert len((await night.tick()).launched) == 3
