"""Claims on real PostgreSQL servers, the embedded one and the system's: one holder, leases, fencing, caps, restarts."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from infra.boards import Ticket
from infra.claims import COUNTERS, Claim, Claims
from infra.database import Database
from infra.errors import CapacityUnavailable, FencedOff, Unreachable
from infra.postgres import ensure_postgres, stop_postgres
from tests.infra.servers import SystemPostgres, system_binaries, system_postgres

TICKET = Ticket(board="main", key="T-1", title="Add a flag", body="Please.", state="todo")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def system_server() -> Iterator[SystemPostgres]:
    binaries = system_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL of the system is installed (Debian: apt-get install postgresql)")
    with system_postgres(binaries) as server:
        yield server


@pytest.fixture(params=["embedded", "system"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "embedded":
        url = request.getfixturevalue("database_url")
    else:
        server: SystemPostgres = request.getfixturevalue("system_server")
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        url = server.url.rpartition("/")[0] + f"/{name}"
    with Database(url.replace("postgresql://", "postgresql+psycopg://")) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(database: Database, clock: Clock) -> Claims:
    return Claims(database, clock)


def on(node: str | None) -> Callable[[Sequence[Claim]], str | None]:
    return lambda _: node


def claim(claims: Claims, ticket: Ticket = TICKET, node: str = "hive", holder: str = "d1") -> Claim | None:
    return claims.claim(
        ticket,
        holder=holder,
        machine="m",
        repository="shop",
        lease_seconds=60,
        read_at=claims.now(),
        choose_node=on(node),
    )


def started(claims: Claims, ticket: Ticket = TICKET) -> Claim:
    made = claim(claims, ticket)
    assert made is not None
    return claims.start(made.board, made.ticket, made.token, flow_run="run-1", machine="m")


def test_a_ticket_is_claimed_once(claims: Claims) -> None:
    """SM1, I4"""
    first = claim(claims)
    assert first is not None
    assert (first.state, first.token, first.key) == ("claimed", 1, "main:T-1:1:1767225600.000")
    assert claim(claims, holder="d2") is None
    assert claims.with_keys(["T-1", "T-2"]).keys() == {"T-1"}


def test_racing_dispatchers_claim_each_ticket_once_and_keep_the_cap(database: Database) -> None:
    """SM5, SM9: the caps hold for any number of dispatchers, because they decide one after the other."""
    tickets = [TICKET.model_copy(update={"key": f"T-{n}"}) for n in range(40)]

    def cap(held: Sequence[Claim]) -> str | None:
        return "hive" if len(held) < 25 else None

    def dispatch(holder: str) -> list[str]:
        mine = Claims(database)
        got = [
            mine.claim(
                t, holder=holder, machine="m", repository="shop", lease_seconds=60, read_at=mine.now(), choose_node=cap
            )
            for t in tickets
        ]
        return [c.ticket for c in got if c]

    with ThreadPoolExecutor(4) as pool:
        won = [key for keys in pool.map(dispatch, ["a", "b", "c", "d"]) for key in keys]
    assert len(won) == len(set(won)) == 25


def test_a_claim_that_was_never_started_is_handed_on_as_the_same_launch(claims: Claims, clock: Clock) -> None:
    """SM9: a dispatcher killed between claim and launch, or after it, leads to one run."""
    first = claim(claims)
    clock.move(61)
    second = claim(claims, holder="d2")
    assert first is not None
    assert second is not None
    assert (second.token, second.key, second.holder) == (first.token, first.key, "d2")
    assert claims.start("main", "T-1", 1, flow_run="r", machine="m").state == "running"
    clock.move(61)
    moved = claim(claims, node="other")
    assert moved is not None
    assert moved.token == 2


def test_a_late_holder_is_fenced_off(claims: Claims, clock: Clock) -> None:
    """SM11"""
    late = started(claims)
    clock.move(61)
    assert [c.ticket for c in claims.expired()] == ["T-1"]
    assert claims.requeue(late, "lease ended", only_expired=True)
    assert not claims.requeue(late, "lease ended", only_expired=True), "an expired lease is requeued once"
    for act in (
        lambda: claims.renew(late),
        lambda: claims.release(late, "x", moved=True),
        lambda: claims.retry(late, "x", 1, None),
        lambda: claims.park(late, "x"),
        lambda: claims.fenced(late).__enter__(),
        lambda: claims.start("main", "T-1", late.token, flow_run="run-1", machine="m"),
    ):
        with pytest.raises(FencedOff, match="does not hold ticket 'T-1'"):
            act()
    again = claim(claims)
    assert again is not None
    assert again.token > late.token
    assert again.infra_faults == 1


def test_a_renewed_lease_does_not_end(claims: Claims, clock: Clock) -> None:
    mine = started(claims)
    for _ in range(5):
        clock.move(50)
        assert claims.renew(mine, idle_seconds=10) is None
    assert claims.expired() == []
    found = claims.find("main", "T-1")
    assert found is not None
    assert found.progress_at == clock.now - timedelta(seconds=10)


def test_only_the_launched_run_starts(claims: Claims) -> None:
    mine = started(claims)
    assert claims.start("main", "T-1", mine.token, flow_run="run-1", machine="m").state == "running"
    with pytest.raises(FencedOff):
        claims.start("main", "T-1", mine.token, flow_run="run-2", machine="m")


def test_nobody_takes_over_during_a_fenced_write(database: Database) -> None:
    """SM11: the write and the check are one; a taker waits for the write to end."""
    claims = Claims(database)
    mine = started(claims)
    order: list[str] = []

    def take_over() -> None:
        claims.requeue(mine, "stolen")
        order.append("taken")

    with claims.fenced(mine):
        thief = threading.Thread(target=take_over)
        thief.start()
        time.sleep(0.3)
        order.append("written")
    thief.join(10)
    assert order == ["written", "taken"]


def test_a_retry_waits_for_its_time_and_a_later_one_replaces_it(claims: Claims, clock: Clock) -> None:
    """RB3, RB6"""
    mine = started(claims)
    claims.retry(mine, "tests failed", 100, "failures")
    clock.move(99)
    assert claim(claims) is None
    clock.move(1)
    second = claim(claims)
    assert second is not None
    assert (second.failures, second.infra_faults) == (1, 0)
    claims.retry(second, "no answer", 500, "infra_faults")
    clock.move(499)
    assert claim(claims) is None
    clock.move(1)
    third = claim(claims)
    assert third is not None
    assert (third.failures, third.infra_faults) == (1, 1)


def test_finished_work_is_not_done_again_until_the_ticket_changes(claims: Claims) -> None:
    """The 124-PR night: a board that never shows the new state must not make us work again."""
    claims.release(started(claims), "accepted", moved=False)
    assert claim(claims) is None
    edited = claim(claims, TICKET.model_copy(update={"body": "Please, and quickly."}))
    assert edited is not None
    assert edited.failures == 0


def test_a_ticket_that_a_person_moved_back_is_worked_on_again(claims: Claims) -> None:
    claims.release(started(claims), "accepted", moved=True)
    assert claim(claims) is not None


def test_a_question_parks_until_it_is_answered(claims: Claims) -> None:
    """RC7"""
    mine = started(claims)
    claims.park(mine, "waits", question="Which colour?")
    assert claim(claims, TICKET.model_copy(update={"body": "edited"})) is None
    (parked,) = claims.in_state("parked")
    assert parked.question == "Which colour?"
    assert claims.held() == [], "the slot is free"
    assert claims.resume(parked, "answered")
    assert claim(claims) is not None


def test_a_person_takes_what_a_dead_process_of_this_machine_left_but_not_what_lives_elsewhere(claims: Claims) -> None:
    """RC10"""
    started(claims)
    options = {"holder": "cli", "node": "hive", "repository": "shop", "lease_seconds": 60.0}
    with pytest.raises(CapacityUnavailable, match="held by node 'hive'"):
        claims.seize(TICKET, machine="another", flow_run="r2", **options)  # type: ignore[arg-type]
    seized = claims.seize(TICKET, machine="m", flow_run="r2", **options)  # type: ignore[arg-type]
    assert (seized.state, seized.token, seized.flow_run) == ("running", 2, "r2")


def test_a_person_does_not_start_a_ticket_whose_key_another_boards_ticket_is_worked_on_under(
    claims: Claims, clock: Clock
) -> None:
    """I4: one key, one branch, one folder of checkouts."""
    started(claims)
    twin = TICKET.model_copy(update={"board": "other"})
    options = {"holder": "cli", "machine": "m", "node": "hive", "repository": "shop", "lease_seconds": 60.0}
    with pytest.raises(CapacityUnavailable, match="another key"):
        claims.seize(twin, flow_run="r2", **options)  # type: ignore[arg-type]
    clock.move(61)
    assert claims.seize(twin, flow_run="r2", **options).state == "running"  # type: ignore[arg-type]


def test_a_stop_is_heard_with_the_next_heartbeat(claims: Claims) -> None:
    """RC3"""
    mine = started(claims)
    claims.ask_stop(mine, "the ticket is closed")
    assert claims.renew(mine) == "the ticket is closed"


class EmbeddedPostgres:
    """An embedded server of its own, that a test may restart: the others' tests go on with theirs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.url = ensure_postgres(home)

    def stop(self) -> None:
        stop_postgres(self.home)

    def start(self) -> None:
        assert ensure_postgres(self.home) == self.url, "a restart keeps the address"

    def restart(self) -> None:
        self.stop()
        self.start()

    def cut_connections(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )


@pytest.fixture(params=["embedded", "system"])
def fragile(request: pytest.FixtureRequest) -> Iterator[SystemPostgres | EmbeddedPostgres]:
    """A server that may be stopped."""
    if request.param == "system":
        yield request.getfixturevalue("system_server")
        return
    home = Path(tempfile.mkdtemp(prefix="darkfactory-fragile-"))  # not below pytest's own folder: see tests/conftest.py
    server = EmbeddedPostgres(home)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


def test_claims_survive_cut_connections_and_a_restarted_server(fragile: SystemPostgres | EmbeddedPostgres) -> None:
    """Item 11, RB6: an error is said, nothing acknowledged is lost, no counter either, and the next call connects anew."""
    with Database(fragile.url.replace("postgresql://", "postgresql+psycopg://")) as database:
        database.migrate()
        claims = Claims(database)
        ticket = TICKET.model_copy(update={"key": f"T-{secrets.token_hex(4)}"})
        for counter in COUNTERS:
            claims.retry(started(claims, ticket), "again", 0, counter)
        mine = started(claims, ticket)
        fragile.cut_connections()
        assert claims.renew(mine) is None
        with pytest.raises(Unreachable), claims.fenced(mine):
            fragile.restart()
        assert claims.renew(mine) is None
        fragile.stop()
        with pytest.raises(Unreachable):
            claims.renew(mine)
        with pytest.raises(Unreachable):
            claim(claims, ticket)
        fragile.start()
        claims.release(mine, "accepted", moved=True)
        found = claims.find(mine.board, mine.ticket)
        assert found is not None
        assert found.state == "released"
        assert [getattr(found, counter) for counter in COUNTERS] == [1] * len(COUNTERS)


def test_a_dispatcher_that_is_suspended_in_mid_claim_does_not_hold_up_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SM9, I4: a laptop that is closed while it holds the lock of all dispatchers loses it, and its claim was never made."""
    monkeypatch.setattr("infra.database.SILENCE_SECONDS", 1)
    with Database(database._url) as laptop, pytest.raises(Unreachable):
        Claims(laptop).claim(
            TICKET, holder="laptop", machine="m", repository="shop", lease_seconds=60, read_at=datetime.now(UTC),
            choose_node=lambda _: _asleep_while(lambda: claim(Claims(database), holder="awake")),
        )  # fmt: skip
    (held,) = Claims(database).held()
    assert held.holder == "awake"


def _asleep_while(others: Callable[[], Claim | None]) -> str:
    """The node, after another dispatcher has claimed: which it can only when ours has lost its lock."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(others).result(timeout=20) is not None
    return "hive"


def test_a_deadlock_is_an_error_that_says_to_try_again(claims: Claims, database: Database) -> None:
    """Two runs that wait for one another: one goes on, and the other hears of it as of any fault of the database."""
    one, two = started(claims), started(claims, TICKET.model_copy(update={"key": "T-2"}))
    both_hold, endings = threading.Barrier(2), list[str]()

    def take(first: Claim, second: Claim) -> None:
        try:
            with database.transaction() as session:
                claims._own_row(session, first)
                both_hold.wait(10)
                claims._own_row(session, second)
            endings.append("went on")
        except Unreachable as error:
            endings.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, (one, two), (two, one)))
    assert sorted(endings)[1] == "went on"
    assert "deadlock" in sorted(endings)[0]
    assert "run again" in sorted(endings)[0]


def test_a_ticket_whose_run_ended_since_it_was_read_is_not_claimed(claims: Claims, clock: Clock) -> None:
    """SM9: what a dispatcher read may be old by the time it claims; found by tests/faults/exactly_once.py."""
    read_at = claims.now()
    clock.move(1)
    claims.release(started(claims), "accepted", moved=True)
    options = {"holder": "d2", "machine": "m", "repository": "shop", "lease_seconds": 60.0, "choose_node": on("hive")}
    assert claims.claim(TICKET, read_at=read_at, **options) is None  # type: ignore[arg-type]
    assert claims.claim(TICKET, read_at=claims.now(), **options) is not None  # type: ignore[arg-type]


def test_nobody_else_changes_a_claim() -> None:
    """SM1: one component. Everybody else asks it."""
    root = Path(__file__).parents[2]
    writes = re.compile(r"ClaimTable|(?:update|into|delete from|truncate)\s+(?:\w+\.)?claims\b", re.IGNORECASE)
    sources = [
        path for package in ("infra", "tasks", "flows", "deployments") for path in (root / package).rglob("*.py")
    ]
    assert len(sources) > 100
    found = {str(path.relative_to(root)) for path in sources if writes.search(path.read_text())}
    assert found == {"infra/claims.py"}
