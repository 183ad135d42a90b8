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
        }
        monkeypatch.setenv("DARKFACTORY_BOARDS", json.dumps({"issues": section}))
        night.factory.forget()
        yield fake


def look() -> None:
    """What a tick asks of boards and ledger, without Prefect around it."""
    from tasks import dispatching

    dispatching._reconcile(None)
    dispatching._resume_answered()
    assert dispatching._fetch(None) == ((), {})


async def test_an_idle_hour_costs_under_a_hundred_calls_and_closed_tickets_cost_nothing(
    night: Night, github: FakeGitHub
) -> None:
    """TR4, RC5"""
    await night.join(slots=2)
    took = {}
    for closed in (0, 10_000):
        for n in range(closed):
            github.add_issue(f"old {n}", "done long ago", labels=["todo"], state="closed")
        github.log.clear()
        started = time.monotonic()
        for _ in range(30):
            look()
            night.clock.move(seconds=120)
        took[closed] = time.monotonic() - started
        assert 30 <= len(github.log) < 100, f"{len(github.log)} calls in an idle hour"
    print(f"30 scans: {took[0]:.1f} s with an empty board, {took[10_000]:.1f} s with 10,000 closed tickets")
    assert took[10_000] < 3 * took[0]


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
