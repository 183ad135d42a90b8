"""Where a ticket may start when models are paused; what one tick does with boards, claims and Prefect that fail it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import notify
from infra.boards import Ticket
from infra.claims import Claim
from infra.errors import AuthFailed, FactoryError, FencedOff, RateLimited, Unreachable
from infra.fleet import Node
from tasks import dispatching, services
from tasks.attempts import provider_scope
from tasks.dispatching import Slots, Waiting, dispatch_gate
from tasks.models import Job
from tests.infra.test_notify import sink

FILE = """
repositories:
  shop: {path: /nowhere}
models:
  local: {model: openai/small, url: "http://127.0.0.1:1/v1"}
  cloud: {model: openai/large, url: "http://127.0.0.1:2/v1"}
"""
LOCAL, CLOUD = "provider:openai@127.0.0.1:1", "provider:openai@127.0.0.1:2"


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "factory.yaml").write_text(FILE)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()
    yield
    services.close()


@pytest.mark.parametrize(
    ("paused", "reason"),
    [((), None), ((LOCAL,), None), ((CLOUD,), None), ((LOCAL, CLOUD), "paused"), (("node:hive",), "paused")],
)
def test_one_dead_provider_stops_no_node_that_has_another(paused: tuple[str, ...], reason: str | None) -> None:
    """RB8"""
    now = datetime.now(UTC)
    node = Node(name="hive", slots=1, labels=(), state="active", machine="m", provider=services.provider(),
                lease_until=now + timedelta(hours=1), joined_at=now, alive=True)  # fmt: skip
    ticket = Ticket(board="folder", key="T-1", title="t", body="", state="todo")
    found = Slots([], [node], paused).why_not(Waiting(ticket=ticket, repository="shop"))
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_run_with_several_providers_leaves_their_pauses_to_the_router() -> None:
    assert provider_scope(Job.model_construct(provider=services.provider())) is None
    assert provider_scope(Job.model_construct(provider="openai")) == "provider:openai"


def test_nothing_is_launched_while_the_agent_that_codes_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """RB8: the architect would be paid for a ticket that its coder cannot work on."""
    coder = "roles: {coder: {agent: codex}}\nagents: {codex: {kind: codex}}\n"
    (tmp_path / "factory.yaml").write_text(FILE + coder)
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    services.close()
    assert dispatch_gate().closed is None
    until = datetime.now(UTC) + timedelta(hours=1)
    services.pauses().pause("provider:codex", "codex: the provider's limit is reached", until)
    assert dispatch_gate().closed == "codex: the provider's limit is reached"
    services.pauses().succeed("provider:codex")
    assert dispatch_gate().closed is None


# --- ticks on real boards and a real ledger, without Prefect -----------------------------------------------------------------


TWO_BOARDS = """
repositories: {{shop: {{path: {home}/shop}}, other: {{path: {home}/other}}}}
boards:
  first: {{kind: folder, path: {home}/first, repository: shop}}
  second: {{kind: folder, path: {home}/second, repository: shop}}
"""


class Time:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


class Sick:
    """A folder board that refuses comments on some tickets, or on all from now on."""

    def __init__(self, board: Any, error: FactoryError, keys: Collection[str] | None = None) -> None:
        self._board, self._error, self._keys, self.refused = board, error, keys, 0

    def comment(self, key: str, body: str, marker: str) -> None:
        if self._keys is None or key in self._keys:
            self.refused += 1
            raise self._error
        self._board.comment(key, body, marker)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)


class Desk:
    """Two folder boards, one node, and a Prefect that takes every run, or none."""

    def __init__(self, home: Path, time: Time) -> None:
        self.home, self.time, self.runs, self.away = home, time, list[str](), False

    def ticket(self, board: str, key: str, **front: object) -> Path:
        path = self.home / board / f"{key}.md"
        path.parent.mkdir(exist_ok=True)
        fields = "".join(f"{name}: {json.dumps(value)}\n" for name, value in {"state": "todo", **front}.items())
        path.write_text(f"---\ntitle: Mend the price list of {key}\n{fields}---\nIt shows 18.0.\n")
        return path

    async def launch_run(self, claimed: Sequence[tuple[Claim, str]], flow: str | None = None) -> str:
        if self.away:
            raise Unreachable("Prefect's server did not answer")
        self.runs.append("+".join(claim.key for claim, _ in claimed))
        return f"run-{len(self.runs)}"

    def sick(self, board: str, error: FactoryError, keys: Collection[str] | None = None) -> Sick:
        sick = Sick(services.board(board), error, keys)
        services._opened["board", board] = sick
        return sick

    async def tick(self) -> tuple[list[str], dict[str, str]]:
        """Fetch and launch. What was launched, and why the rest was not."""
        waiting, passed_over = dispatching._fetch(None)
        launched, too_late = await dispatching.launch.fn(waiting)
        return [each.ticket for each in launched], passed_over | too_late


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Desk:
    (tmp_path / "factory.yaml").write_text(TWO_BOARDS.format(home=tmp_path))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    desk = Desk(tmp_path, Time())
    monkeypatch.setattr(services, "clock", desk.time)
    monkeypatch.setattr(dispatching, "launch_run", desk.launch_run)
    services.close()
    services.fleet().join("hive", slots=3, labels=(), machine="m", provider=services.provider(), lease_seconds=1e9)
    return desk


def held() -> dict[str, str]:
    return {claim.ticket: claim.state for claim in services.claims().held()}


async def test_of_two_boards_tickets_with_one_key_one_is_worked_on_and_the_other_is_told(desk: Desk) -> None:
    """I4: a key names one branch, so the second would get the first one's pull request for its own."""
    desk.ticket("first", "one")
    twin = desk.ticket("second", "one")
    launched, skipped = await desk.tick()
    assert launched == ["one"]
    assert [claim.board for claim in services.claims().held()] == ["first"]
    assert "the board 'first' has a ticket 'one', too" in skipped["second:one"]
    first = services.claims().start("first", "one", 1, flow_run="r", machine="m")
    services.claims().release(first, "accepted", moved=True)
    desk.ticket("first", "one", state="done")
    assert (await desk.tick())[0] == [], "its branch is taken for good"
    assert twin.read_text().count("Not worked on: the board 'first'") == 1
    assert "Not worked on" not in (desk.home / "first/one.md").read_text()
    twin.rename(twin.with_name("two.md"))
    assert (await desk.tick())[0] == ["two"]


async def test_tickets_with_one_key_are_not_taken_by_two_dispatchers_at_once(desk: Desk) -> None:
    """I4, SM9: each dispatcher heard of one of them through a webhook."""
    for board in ("first", "second"):
        desk.ticket(board, "one")
    waiting = [dispatching._fetch((board, "one"))[0] for board in ("first", "second")]
    assert [len(each) for each in waiting] == [1, 1]
    done = [len((await dispatching.launch.fn(each))[0]) for each in waiting]
    assert done == [1, 0]


async def test_a_board_of_thousands_that_fit_nowhere_is_told_a_few_at_a_time_and_each_once(desk: Desk) -> None:
    """I3: "unknown" is said once on the ticket, and the service is not flooded."""
    for n in range(dispatching.MOST_REMARKS * 2 + 5):
        desk.ticket("first", f"lost-{n}", repository="nowhere")
    told = []
    for _ in range(4):
        await desk.tick()
        told.append(sum("Not worked on: " in path.read_text() for path in (desk.home / "first").glob("*.md")))
    assert told == [20, 40, 45, 45]
    assert all(path.read_text().count("Not worked on: ") == 1 for path in (desk.home / "first").glob("*.md"))


async def test_tickets_that_were_done_keep_no_other_from_being_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: their board never moved them, and now their repository is gone."""
    for n in range(dispatching.MOST_REMARKS + 1):
        desk.ticket("first", f"done-{n:02}")
    services.fleet().join("hive", slots=50, labels=(), machine="m", provider=services.provider(), lease_seconds=1e9)
    for key in (await desk.tick())[0]:
        services.claims().release(
            services.claims().start("first", key, 1, flow_run=key, machine="m"), "done", moved=False
        )
    settings = desk.home / "factory.yaml"
    settings.write_text(settings.read_text().replace(", repository: shop", ""))
    services.close()
    desk.ticket("second", "lost")
    with monkeypatch.context() as patched:
        asked: list[str] = []
        hold_back = dispatching.hold_back
        patched.setattr(
            dispatching, "hold_back", lambda remark: (asked.append(remark.ticket.key), hold_back(remark))[1]
        )
        await desk.tick()
    assert asked == ["lost"], "thousands of looks would take the dispatchers' lock thousands of times"
    assert "Not worked on: " in (desk.home / "second/lost.md").read_text()
    assert "Not worked on: " not in (desk.home / "first/done-00.md").read_text()


async def test_a_retry_that_is_due_while_all_slots_are_taken_waits_on_and_says_so(desk: Desk) -> None:
    """RB4, RB5"""
    desk.ticket("first", "due", priority=4)
    assert (await desk.tick())[0] == ["due"]
    services.claims().retry(
        services.claims().start("first", "due", 1, flow_run="r", machine="m"), "failed", 10, "failures"
    )
    desk.time.now += timedelta(seconds=11)
    for n in range(3):
        desk.ticket("first", f"t{n}", priority=1)
    for skipped in ({"due": "no slots"}, {"due": "no slots"}):
        assert (await desk.tick())[1] == skipped
        claim = services.claims().find("first", "due")
        assert claim is not None
        assert (claim.state, claim.failures, claim.infra_faults) == ("retry-queued", 1, 0)


async def test_a_board_that_takes_no_remark_stops_neither_the_tick_nor_other_tickets(desk: Desk) -> None:
    """I3, TR4: what it does not take now is said later."""
    desk.ticket("first", "lost", repository="nowhere")
    desk.ticket("second", "fine")
    desk.sick("first", RateLimited("slow down"))
    assert (await desk.tick())[0] == ["fine"]
    assert "board:first" in services.pauses().active()
    assert held() == {"fine": "claimed"}
    services.pauses().succeed("board:first")
    services._opened.pop(("board", "first"))
    await desk.tick()
    assert "Not worked on: " in (desk.home / "first/lost.md").read_text()


async def test_a_ticket_that_takes_no_remark_at_all_is_parked_with_its_reason(desk: Desk) -> None:
    desk.ticket("first", "lost", repository="nowhere")
    sick = desk.sick("first", AuthFailed("the conversation is locked"))
    for _ in range(3):
        await desk.tick()
    claim = services.claims().find("first", "lost")
    assert claim is not None
    assert (claim.state, claim.reason[:12], sick.refused) == ("parked", "not routed: ", 1)


async def test_a_ticket_on_which_the_claim_cannot_be_shown_is_not_started_and_holds_no_slot(desk: Desk) -> None:
    """SM11, RB5: the claim is on the ticket before the agent starts, or there is none."""
    for key in ("a-locked", "b", "c", "d"):
        desk.ticket("first", key)
    desk.sick("first", AuthFailed("the conversation is locked"), {"a-locked"})
    launched, skipped = await desk.tick()
    assert launched == ["b", "c", "d"], "three slots"
    assert skipped == {"a-locked": "the conversation is locked"}
    claim = services.claims().find("first", "a-locked")
    assert claim is not None
    assert (claim.state, claim.failures, claim.infra_faults) == ("retry-queued", 0, 0)
    assert len(desk.runs) == 3


async def test_a_board_that_limits_us_in_mid_tick_is_asked_no_more_and_the_others_go_on(desk: Desk) -> None:
    """TR4: with thousands of tickets waiting, going on is what gets an account blocked."""
    for n in range(8):
        desk.ticket("first", f"a{n}")
    desk.ticket("second", "z", priority=4)
    sick = desk.sick("first", RateLimited("slow down", desk.time.now + timedelta(minutes=9)))
    launched, skipped = await desk.tick()
    assert launched == ["z"]
    assert sick.refused == 1
    assert {skipped[f"a{n}"] for n in range(8)} == {"slow down"}
    assert services.pauses().active()["board:first"].until == desk.time.now + timedelta(minutes=9)


async def test_a_claimed_ticket_that_is_closed_before_its_run_starts_is_never_started(desk: Desk) -> None:
    """SM6, RC3: the run that was launched finds its claim gone."""
    desk.ticket("first", "one")
    assert (await desk.tick())[0] == ["one"]
    (claim,) = services.claims().held()
    desk.ticket("first", "one", state="done")
    assert dispatching._reconcile(None) == ("one",)
    assert held() == {}, "its slot is free"
    with pytest.raises(FencedOff):
        services.claims().start("first", "one", claim.token, flow_run="run-1", machine="m")
    desk.ticket("first", "one")
    assert (await desk.tick())[0] == ["one"], "opened again"


async def test_a_launch_that_prefect_did_not_take_is_made_again_as_the_same_launch(desk: Desk) -> None:
    """SM9, RB5: nobody knows whether the run was made, so the second one has the first one's key. Its own claim is in no
    ticket's way, also where there is one slot."""
    services.fleet().join("hive", slots=1, labels=(), machine="m", provider=services.provider(), lease_seconds=1e9)
    desk.ticket("first", "one")
    desk.away = True
    assert (await desk.tick())[0] == []
    (before,) = services.claims().held()
    desk.away = False
    assert (await desk.tick())[0] == [], "its lease has not ended"
    desk.time.now += timedelta(seconds=121)
    assert (await desk.tick())[0] == ["one"]
    assert desk.runs == [before.key]
    assert services.claims().held()[0].infra_faults == 0


async def test_a_pull_request_is_seen_also_when_an_earlier_launch_came_to_nothing(desk: Desk) -> None:
    """I4: with a lost ledger and a node that cannot take the first run, the second launch looks again."""
    desk.ticket("first", "one")
    assert (await desk.tick())[0] == ["one"]
    (claim,) = services.claims().held()
    services.claims().requeue(claim, "its node is gone")
    services.forge("shop").publish(branch="agent/one", base="main", head_sha="0" * 40, title="t", body="", draft=True)
    assert (await desk.tick())[0] == []
    assert "There is a pull request already: " in (desk.home / "first/one.md").read_text()


async def test_claims_on_a_board_that_was_removed_harm_nobody_and_free_their_slots(desk: Desk) -> None:
    """CF1, SM11"""
    desk.ticket("first", "one")
    desk.ticket("second", "two")
    assert len((await desk.tick())[0]) == 2
    services.claims().start("first", "one", 1, flow_run="r", machine="m")
    only_second = TWO_BOARDS.format(home=desk.home).replace("  first: ", "  # first: ")
    (desk.home / "factory.yaml").write_text(only_second)
    services.close()
    desk.ticket("second", "three")
    assert dispatching._reconcile(None) == ()
    assert (await desk.tick())[0] == ["three"]
    desk.time.now += timedelta(seconds=121)
    dispatching._reconcile(None)
    assert "one" not in held()
    assert (await desk.tick())[1] == {}


async def test_the_tickets_of_a_session_take_one_place_and_each_counts_as_running(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13, SM5: three slots, nine small tickets about one thing, four to a session."""
    monkeypatch.setenv("DARKFACTORY_DISPATCH", json.dumps({"batch": 4, "max_running": 9}))
    services.close()
    for n in range(9):
        desk.ticket("first", f"t{n}")
    assert len((await desk.tick())[0]) == 9
    assert [key.count("first:t") for key in desk.runs] == [4, 4, 1]
    desk.ticket("first", "t9")
    assert (await desk.tick())[1] == {"t9": "no slots"}


async def test_a_session_goes_out_without_the_ticket_that_cannot_be_claimed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: what was claimed for it is launched all the same."""
    monkeypatch.setenv("DARKFACTORY_DISPATCH", json.dumps({"batch": 4}))
    services.close()
    for n in range(3):
        desk.ticket("first", f"t{n}")
    desk.sick("first", AuthFailed("the conversation is locked"), {"t1"})
    assert (await desk.tick())[0] == ["t0", "t2"]
    assert held() == {"t0": "claimed", "t2": "claimed"}


def test_of_two_dispatchers_that_want_to_probe_one_does(desk: Desk) -> None:
    """RB9"""
    services.pauses().pause("dispatch", "everything dies", None)
    desk.time.now += timedelta(seconds=dispatching.PROBE_AFTER_SECONDS + 1)
    for n in range(6):
        desk.ticket("first", f"t{n}")
    waiting, _ = dispatching._fetch(None)
    assert dispatch_gate().probing
    slots = Slots.now()
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda one: dispatching._claim_for_launch(one, slots, None), waiting))
    assert sum(claim is not None for claim in got) == 1
    assert len(held()) == 1
    assert dispatch_gate().closed is not None, "while it runs, nobody else tries"


async def test_of_the_rounds_on_pull_requests_one_may_try_while_dispatch_is_paused(desk: Desk) -> None:
    """RB9: a round is a launch like any other."""
    services.pauses().pause("dispatch", "everything dies", None)
    desk.time.now += timedelta(seconds=dispatching.PROBE_AFTER_SECONDS + 1)
    for n in range(3):
        desk.ticket("first", f"t{n}")
    waiting, _ = dispatching._fetch(None)
    desk.time.now += timedelta(seconds=1)
    assert [await dispatching.launch_round(one) is not None for one in waiting] == [True, False, False]
    assert len(held()) == 1


class Crowd:
    """A board with thousands of tickets in memory: how long a service takes to send them is not what is measured."""

    def __init__(self, tickets: list[Ticket]) -> None:
        self._tickets = {ticket.key: ticket for ticket in tickets}

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        return list(self._tickets.values())

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        return [self._tickets[key] for key in keys]

    def comment(self, key: str, body: str, marker: str) -> None: ...


async def test_a_tick_over_five_thousand_waiting_tickets_takes_seconds(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "The price list shows 18.0 in place of 18.00. " * 20
    crowd = [Ticket(board="first", key=f"T-{n}", title=f"Mend {n}", body=body, state="todo") for n in range(5_000)]
    services._opened["board", "first"] = Crowd(crowd)
    begun = time.process_time()
    launched, skipped = await desk.tick()
    seconds = time.process_time() - begun
    with capsys.disabled():
        print(f"\na tick over 5,000 waiting tickets: {seconds:.1f} s of one core")
    assert (launched, len(skipped)) == (["T-0", "T-1", "T-2"], 4_997)
    assert seconds < 20


def test_a_mistake_in_factory_yaml_is_told_once_though_every_tick_is_a_process(tmp_path: Path) -> None:
    """CF1, SM2: and again when it was mended and is made anew."""
    file = tmp_path / "factory.yaml"
    with sink() as chat:
        good = f"{FILE}notify: {{webhook: '{chat.url}'}}\n"

        def ticks(text: str, times: int) -> list[str | None]:
            file.write_text(text)
            found = []
            for _ in range(times):
                services.close()
                notify._told.clear()
                found.append(dispatching._told_configuration())
            return found

        assert ticks(good, 1) == [None]
        assert all("did you mean 'seed'" in (problem or "") for problem in ticks(f"sed: 1\n{good}", 3))
        assert len(chat.got) == 1
        ticks(good, 1)
        ticks(f"sed: 1\n{good}", 2)
        assert len(chat.got) == 2
