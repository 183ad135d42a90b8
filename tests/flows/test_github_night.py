"""The dispatcher against a GitHub that answers by its own contract: what an idle hour costs, and a ticket's whole way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.fakes.github import FakeGitHub
from tests.flows.test_dispatch import Night, night
from tests.shop import BODY

__all__ = ["night"]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]


QUEUE = ("todo", "agent queue", "qa queue", "qa testing")


@pytest.fixture
def github(night: Night, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGitHub]:
    with FakeGitHub() as fake:
        monkeypatch.setenv("BOARD_TOKEN", fake.token)
        section = {
            "kind": "github",
            "project": "acme/shop",
            "token": "$BOARD_TOKEN",
            "url": fake.url,
            "repository": "shop",
            "states": {"queue": QUEUE},
        }
        monkeypatch.setenv("DARKFACTORY_BOARDS", json.dumps({"issues": section}))
        night.factory.forget()
        yield fake


def look(night: Night) -> tuple[list[str], set[str]]:
    """What a tick asks of boards and ledger, without Prefect around it and with a board that knows nothing, as a new process
    has it. Returns the keys that wait for a node, and those that were skipped."""
    from tasks import dispatching, services

    services._opened.pop(("board", "issues"), None)
    dispatching._reconcile(None)
    dispatching._resume_answered()
    waiting, skipped = dispatching._fetch(None)
    night.clock.move(seconds=120)
    return [each.ticket.key for each in waiting], set(skipped)


def ask(night: Night, key: str) -> None:
    """Let the ticket wait for a person's answer."""
    from tasks import services

    claims, [ticket] = services.claims(), services.board("issues").tickets_by_keys([key])
    claim = claims.claim(
        ticket, holder="h", machine="m", repository="shop", lease_seconds=60, read_at=claims.now(),
        choose_node=lambda _: night.node,
    )  # fmt: skip
    assert claim is not None
    claims.park(claim, "asks", question="Which colour?")


async def test_an_idle_hour_costs_under_a_hundred_calls_and_closed_tickets_cost_nothing(
    night: Night, github: FakeGitHub
) -> None:
    """TR4, RC5: four queue states, and every look is one of a new process. GitHub does not count what it confirms (304)."""
    await night.join(slots=2)
    took = {}
    for looks, closed in ((5, 0), (30, 10_000)):
        for n in range(closed):
            github.add_issue(f"old {n}", "done long ago", labels=["todo"], state="closed")
        started = time.monotonic()
        for _ in range(looks):
            assert look(night) == ([], set())
        took[closed] = (time.monotonic() - started) / looks
    print(
        f"{len(github.log)} requests, {github.spent} count; a look: {took[0]:.2f} s, with 10,000 closed {took[10_000]:.2f} s"
    )
    assert len(github.log) == 35 * len(QUEUE)
    assert github.spent == len(QUEUE)
    assert took[10_000] < 3 * took[0]


async def test_tickets_that_wait_for_people_or_for_each_other_cost_no_calls_either(
    night: Night, github: FakeGitHub
) -> None:
    """TR4: until something changes on one of them, which is seen at the next look."""
    await night.join(slots=2)
    blocker = github.add_issue("blocker", labels=["bug"])
    blocked = [github.add_issue(f"blocked {n}", labels=["todo"]) for n in range(3)]
    asking = [github.add_issue(f"asks {n}", labels=["in progress"], author="ada") for n in range(2)]
    for number in blocked:
        github.block(number, blocker)
    for number in asking:
        ask(night, f"shop-{number}")
    for _ in range(2):
        look(night)
    spent = github.spent
    for _ in range(5):
        assert look(night) == ([], {f"shop-{number}" for number in blocked})
    assert github.spent == spent

    github.add_comment(asking[0], "Blue.", author="ada")
    assert look(night)[0] == [f"shop-{asking[0]}"]


@pytest.mark.slow
async def test_an_issue_becomes_work_once_however_often_it_is_looked_at(night: Night, github: FakeGitHub) -> None:
    """SM10, SM11: claimed on the issue first; then its state label moves with the work."""
    await night.join(slots=2)
    number = github.add_issue("total ignores the discount", BODY, labels=["todo"], author="ada")
    key = f"shop-{number}"
    for only in ((), ("issues", key), ("issues", key), ()):
        await night.tick(*only)
    assert len(await night.runs()) == 1
    assert any("Claimed by node" in comment["body"] for comment in github.issues[number].comments)
    assert await night.work() == ["ACCEPT"]
    assert {label.lower() for label in github.issues[number].labels} == {"in review"}
    assert sum("Draft pull request" in comment["body"] for comment in github.issues[number].comments) == 1
    assert (await night.tick()).launched == ()
