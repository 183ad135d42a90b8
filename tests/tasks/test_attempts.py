"""How an attempt ends: budgets that are used up, late holders, runs that never get anywhere; who is told, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import BudgetExhausted, FencedOff
from infra.pauses import BUDGET
from tasks import holding, services
from tasks.attempts import close, give_back
from tasks.dispatching import dispatch_gate
from tasks.holding import put_back
from tasks.models import Job, Outcome, Repository
from tests.shop import write_ticket


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(hour=12)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(services, "clock", made)
    return made


@pytest.fixture
def board(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Path]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    services.close()
    yield tmp_path / "board"
    services.close()


def running(board: Path, key: str) -> Job:
    """A dispatched run of a ticket that has two attempts left."""
    write_ticket(board, key)
    (ticket,) = services.board().tickets_by_keys([key])
    claim = services.claims().seize(
        ticket, holder="h", machine="m", node="n", repository="shop", lease_seconds=60, flow_run="r"
    )
    services.ledger().record_ticket(ticket, "shop")
    attempt = services.ledger().start_attempt(key, "a" * 40, ticket.revision)
    repository = Repository(name="shop", mirror="m", remote="", base_branch="main", base_sha="a" * 40)
    return Job(
        ticket=ticket, repository=repository, attempt_id=attempt.id, attempt=1, model="m", tier="small",
        context_tokens=1, max_rounds=1, max_samples=1, seed=0, claim=claim, dispatched=True, final=False,
    )  # fmt: skip


def state_of(key: str) -> tuple[str | None, str, list[str]]:
    """The claim's state, the board's, and what was said on the ticket."""
    claim, (ticket,) = services.claims().find("folder", key), services.board().tickets_by_keys([key])
    return claim.state if claim else None, ticket.state, [comment.body for comment in ticket.comments]


@pytest.mark.parametrize("scope", ["ticket", "role"])
async def test_a_ticket_whose_budget_is_used_up_is_parked_with_a_comment_and_nothing_rests(
    board: Path, scope: str
) -> None:
    """RB11, A6"""
    error = BudgetExhausted("`budgets.ticket_usd` is 1.0000 USD; raise the cap", scope)  # type: ignore[arg-type]
    await give_back(running(board, "t-1"), error, 100)
    claim, state, (said,) = state_of("t-1")
    assert (claim, state) == ("parked", "needs human")
    assert "was stopped" in said
    assert "budgets.ticket_usd" in said
    assert services.pauses().active() == {}
    assert services.ledger().burnt_attempts("t-1") == 0
    assert dispatch_gate().closed is None


async def test_a_ticket_that_waits_for_money_of_calls_under_way_is_queued_again_in_silence(
    board: Path, clock: Clock
) -> None:
    error = BudgetExhausted("the calls under way hold it", "day", clock.now + timedelta(seconds=30))
    await give_back(running(board, "t-1"), error, 100)
    assert state_of("t-1") == ("retry-queued", "ready", [])
    assert services.pauses().active() == {}


async def test_a_day_without_money_pauses_dispatch_until_the_next_and_no_run_tries(board: Path, clock: Clock) -> None:
    """A6: nothing is burnt, and neither a success elsewhere nor a probe ends it before the money is there again."""
    midnight = clock.now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    error = BudgetExhausted("`budgets.day_usd` is used up", "day", midnight)
    for number in range(3):
        await give_back(running(board, f"t-{number}"), error, 1)
    assert state_of("t-1") == ("retry-queued", "ready", [])
    assert services.ledger().burnt_attempts("t-1") == 0
    assert [(p.scope, p.until, p.times) for p in services.pauses().active().values()] == [(BUDGET, midnight, 1)]
    clock.now += timedelta(hours=11)
    assert "budgets.day_usd" in str(dispatch_gate().closed)
    assert not dispatch_gate().probing
    clock.now = midnight + timedelta(seconds=1)
    assert dispatch_gate().closed is None


async def test_a_person_who_raised_the_cap_ends_the_pause(board: Path, clock: Clock) -> None:
    error = BudgetExhausted("`budgets.month_usd` is used up", "month", clock.now + timedelta(days=9))
    for number in range(6):
        await give_back(running(board, f"t-{number}"), error, 1)
    assert services.pauses().succeed(BUDGET, by_hand=True)
    assert dispatch_gate().closed is None, "nor do the six fast ends count as a storm of failures (RB9)"


async def test_a_late_holder_does_not_end_the_attempt_that_another_run_is_at_work_on(board: Path, clock: Clock) -> None:
    """SM11: the same text on the same base is the same attempt, whoever works on it."""
    late = running(board, "t-1")
    services.claims().requeue(late.claim, "its lease ended")
    clock.now += timedelta(seconds=1)
    current = running(board, "t-1")
    assert current.attempt_id == late.attempt_id
    with pytest.raises(FencedOff):
        await close.fn(late, Outcome(ticket="t-1", decision="REJECT", reasons=()))
    assert services.ledger().burnt_attempts("t-1") == 0
    await close.fn(current, Outcome(ticket="t-1", decision="ACCEPT", reasons=()))
    (attempt,) = services.ledger().history("t-1").attempts
    assert attempt.outcome == "accepted"


async def test_a_ticket_whose_runs_never_get_anywhere_is_tried_on_and_people_hear_of_the_third_time(
    board: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RB8: no attempt is burnt, so nothing else would ever tell."""
    told: list[str] = []
    monkeypatch.setattr(holding, "notify", lambda _, title, text, key: told.append(f"{title}: {text} ({key})"))
    for fault in range(5):
        job = running(board, "t-1")
        assert job.claim.infra_faults == fault
        put_back(job.claim, "repository 'shop' is not configured on this node")
        clock.now += timedelta(seconds=301)
    assert [line.partition(";")[0] for line in told] == [
        "t-1 cannot be worked on: repository 'shop' is not configured on this node"
    ]
    assert services.ledger().burnt_attempts("t-1") == 0
