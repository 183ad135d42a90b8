"""What a tick stops: runs whose ticket a person closed or took away, and nothing that it could not see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.boards import Ticket
from infra.claims import Claim
from infra.errors import Unreachable
from tasks import dispatching, services
from tests.tasks.test_dispatching import Desk, desk  # noqa: F401  a fixture


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()
    yield
    services.close()


class Away:
    """A board that is never there."""

    asked = 0

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        self.asked += 1
        raise Unreachable("the board is away")


def begun(key: str) -> Claim:
    (claim,) = [claim for claim in services.claims().held() if claim.ticket == key]
    return services.claims().start(claim.board, key, claim.token, flow_run="run", machine="m")


async def test_a_ticket_that_is_given_to_somebody_else_stops_its_run(desk: Desk) -> None:  # noqa: F811
    """I11: whose it was is seen once it is at work, because some boards assign a ticket when it is moved, or soon after."""
    desk.ticket("first", "one", assignee="ann")
    await desk.tick()
    begun("one")
    assert dispatching._reconcile(None) == ()
    desk.ticket("first", "one", state="in progress")
    assert dispatching._reconcile(None) == ()
    for _ in range(2):
        assert dispatching._reconcile(("first", "one")) == (), "what a webhook told of our own move"
    desk.ticket("first", "one", state="in progress", assignee="factory")
    for _ in range(2):
        assert dispatching._reconcile(None) == (), "our own move"
    desk.ticket("first", "one", state="in progress")
    assert dispatching._reconcile(None) == (), "whoever had it leaves it to the factory"
    desk.ticket("first", "one", state="in progress", assignee="bob")
    assert dispatching._reconcile(None) == ("one",)
    (claim,) = services.claims().held()
    assert claim.stop == "cancelled: the ticket was assigned to 'bob'"


async def test_a_ticket_that_nobody_had_is_taken_by_a_person(desk: Desk) -> None:  # noqa: F811
    """I11"""
    desk.ticket("first", "one")
    await desk.tick()
    begun("one")
    desk.ticket("first", "one", state="in progress")
    for _ in range(2):
        assert dispatching._reconcile(None) == ()
    desk.ticket("first", "one", state="in progress", assignee="ann")
    assert dispatching._reconcile(("first", "one")) == ("one",)


async def test_a_board_that_cannot_be_read_keeps_its_runs_and_one_without_any_is_not_read(desk: Desk) -> None:  # noqa: F811
    """RC4, RC5, I11: what cannot be seen was not closed; the other board's closed ticket is stopped all the same."""
    desk.ticket("first", "one")
    desk.ticket("second", "two")
    await desk.tick()
    begun("one")
    begun("two")
    board = services._opened["board", "first"] = Away()
    desk.ticket("second", "two", state="done")
    assert dispatching._reconcile(None) == ("two",)
    assert {claim.ticket: claim.stop is None for claim in services.claims().held()} == {"one": True, "two": False}
    for claim in services.claims().held():
        services.claims().release(claim, "accepted", moved=True)
    assert dispatching._reconcile(None) == ()
    assert board.asked == 1
