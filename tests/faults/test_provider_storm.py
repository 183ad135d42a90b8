"""The storm: a provider that fails in every way we know, beside one that is well. Real HTTP, real PostgreSQL, processes.

Each failure is read right, burns no attempt, costs nothing, is asked once, and the next model of the file answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from infra.budgets import Budgets
from infra.database import Database
from infra.errors import (
    AuthFailed,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    LimitReached,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from infra.llm import Message, ModelRequest
from infra.llm.anthropic_api import CACHE_WRITE_PRICE
from infra.llm.router import (
    LIMIT_SECONDS,
    PASSING_SECONDS,
    PERSON_SECONDS,
    Purpose,
    Router,
    estimated_tokens,
    open_router,
)
from infra.llm.scripted import Answer, Fault, ScriptedModel, on
from infra.pauses import Pauses
from infra.sections import BudgetsSection
from infra.settings import Settings
from tasks.failures import Ending, classify
from tests.flows.conftest import Factory
from tests.shop import write_ticket

Vendor = Literal["openai", "anthropic"]
VENDORS: tuple[Vendor, ...] = ("openai", "anthropic")
REQUEST = ModelRequest(messages=(Message(role="user", content="fix the bug"),), max_tokens=1)
SILENCE_SECONDS = 0.6
"""Longest silence that the tests bear; the whole call may take twice that and a second."""
PRICE = (1000.0, 1000.0, 5000.0)


class Row(NamedTuple):
    """A way to fail: what it means, and how long the provider (or, `alone`, this model of it) rests then.

    `unanswered`: the request had arrived and nothing was said, so it may be billed.
    """

    name: str
    fault: Fault
    means: type[FactoryError]
    rests: float | None
    vendors: tuple[Vendor, ...] = VENDORS
    alone: bool = False
    unanswered: bool = False


def status(number: int, body: dict[str, Any] | str | None = None, **headers: str) -> Fault:
    return Fault(kind="status", status=number, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def said(message: str = "scripted", **fields: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"message": message, **fields}}


def stream(body: str, kind: str = "text/event-stream") -> Fault:
    """A good status, and then this."""
    return Fault(kind="status", status=200, body=body, headers={"content-type": kind})


def event(**fields: Any) -> Fault:
    return stream(f"event: error\ndata: {json.dumps(said(**fields))}\n\n")


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


OPENAI: tuple[Vendor, ...] = ("openai",)
ANTHROPIC: tuple[Vendor, ...] = ("anthropic",)
PASSING, LIMIT, PERSON = float(PASSING_SECONDS[0]), float(LIMIT_SECONDS[0]), float(PERSON_SECONDS[0])


def rows() -> Iterator[Row]:
    yield Row("retry-after in seconds", status(429, retry_after="90"), RateLimited, 90)
    yield Row("retry-after as a date", status(429, retry_after=format_datetime(soon(1200), usegmt=True)), RateLimited, 1200)  # fmt: skip
    yield Row("retry-after-ms", status(429, retry_after_ms="45000"), RateLimited, 45)
    spent = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m30s"}
    yield Row("x-ratelimit-reset-requests", status(429, **spent), RateLimited, 90, OPENAI)
    yield Row("x-ratelimit-reset-tokens", status(429, x_ratelimit_reset_tokens="75"), RateLimited, 75, OPENAI)
    moment = soon(2000).strftime("%Y-%m-%dT%H:%M:%SZ")
    for kind in ("requests", "input-tokens"):
        reset = {f"anthropic-ratelimit-{kind}-reset": moment, f"anthropic-ratelimit-{kind}-remaining": "0"}
        yield Row(f"anthropic-ratelimit-{kind}-reset", status(429, **reset), RateLimited, 2000, ANTHROPIC)
    yield Row("resets_at", status(429, said(type="usage_limit_reached", resets_at=soon(4000).timestamp())), RateLimited, 4000)  # fmt: skip
    yield Row("resets_in_seconds", status(429, said(type="usage_limit_reached", resets_in_seconds=500)), RateLimited, 500)  # fmt: skip
    yield Row("a limit in words", status(429, said("Rate limit reached. Please try again in 20s.")), RateLimited, 20)
    yield Row("a limit without a word", status(429), RateLimited, LIMIT)
    yield Row("a plain 429", status(429, "slow down"), RateLimited, LIMIT)
    yield Row("401", status(401), AuthFailed, PERSON)
    yield Row("403", status(403), AuthFailed, PERSON)
    yield Row("402", status(402), QuotaExhausted, PERSON)
    yield Row("insufficient_quota", status(429, said(code="insufficient_quota")), QuotaExhausted, PERSON)
    cap = {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}
    yield Row("enforced_spend_limit_reached", status(429, said(**cap)), QuotaExhausted, PERSON)
    low = said("Your credit balance is too low to access the API", type="invalid_request_error")
    yield Row("a low balance with 400", status(400, low), QuotaExhausted, PERSON)
    yield Row("529", status(529), CapacityUnavailable, PASSING)
    yield Row("503", status(503), CapacityUnavailable, PASSING)
    yield Row("500", status(500), Unreachable, PASSING)
    yield Row("502 of a proxy", status(502, "<html>bad gateway</html>"), Unreachable, PASSING)
    yield Row("a torn connection", Fault(kind="reset"), Unreachable, PASSING, unanswered=True)
    yield Row("silence", Fault(kind="silent", seconds=5), Unreachable, PASSING, unanswered=True)
    yield Row("a slow drip", Fault(kind="drip", seconds=5), Unreachable, PASSING, unanswered=True)
    yield Row("a stream cut before its first word", stream(""), Unreachable, PASSING, unanswered=True)
    yield Row("overloaded after 200", event(type="overloaded_error"), CapacityUnavailable, PASSING)
    yield Row("api_error after 200", event(type="api_error"), Unreachable, PASSING)
    yield Row("a limit after 200", event(type="rate_limit_error"), RateLimited, LIMIT)
    yield Row("server_error after 200", event(code="server_error"), Unreachable, PASSING, OPENAI)
    yield Row("garbage", Fault(kind="garbage"), ProviderFault, PASSING)
    yield Row("an empty body", stream("", "application/json"), ProviderFault, PASSING)
    yield Row("a wrong content type", Fault(kind="html"), ProviderFault, PASSING)
    yield Row("413", status(413), LimitReached, None)
    yield Row("context_length_exceeded", status(400, said(code="context_length_exceeded")), LimitReached, None)
    yield Row("prompt is too long", status(400, said("prompt is too long: 9 tokens > 8 maximum")), LimitReached, None)
    yield Row("404", status(404), UnknownModel, PERSON, alone=True)
    yield Row("model_not_found", status(400, said(code="model_not_found")), UnknownModel, PERSON, alone=True)
    yield Row("a bad request", status(400, said("bad field", type="invalid_request_error")), ConfigError, None)


FOR_A_PERSON = (AuthFailed, QuotaExhausted, UnknownModel, ConfigError)


class Ground:
    """One ledger for all of the storm, and routers over it, as processes of their own would have them."""

    def __init__(self, url: str, home: Path) -> None:
        self.database = Database(url.replace("postgresql://", "postgresql+psycopg://"))
        self.home, self.told = home, list[str]()
        self.pauses = Pauses(self.database)
        self.budgets = Budgets(self.database, BudgetsSection())

    def router(self, models: dict[str, dict[str, Any]]) -> Router:
        return connected(self.home, models, self.pauses, self.budgets, self.told)

    def spent(self) -> tuple[float, float]:
        """USD of this month, and the part of it that is still reserved."""
        month = self.budgets.usage()[0]
        return month.used, month.reserved


def connected(
    home: Path, models: dict[str, dict[str, Any]], pauses: Pauses, budgets: Budgets, told: list[str]
) -> Router:
    router = open_router(Settings(home=home, models=models), "usual", lambda: pauses, lambda: budgets)
    router.tell = lambda title, text, key: told.append(f"{key}: {text}")
    return router


def section(model: ScriptedModel, vendor: Vendor = "openai", **fields: Any) -> dict[str, Any]:
    url = model.openai_url if vendor == "openai" else model.url
    return {"model": f"{vendor}/m", "url": url, "key": "sk-test-0123456789", "timeout_seconds": SILENCE_SECONDS,
            "usd_per_million_tokens": PRICE, **fields}  # fmt: skip


def scope(model: ScriptedModel, vendor: Vendor = "openai") -> str:
    return f"provider:{vendor}@{model.url.removeprefix('http://')}"


async def ask(router: Router, key: str = "ask") -> str:
    """Who answered."""
    return (await router.for_call(Purpose(key=key, ticket="T-1", role="coder")).complete(REQUEST)).model


@pytest.fixture
def ground(database_url: str, tmp_path: Path) -> Iterator[Ground]:
    found = Ground(database_url, tmp_path)
    with found.database:
        yield found


@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_failure_is_read_right_and_the_next_model_answers(ground: Ground, vendor: Vendor) -> None:
    """RB8"""
    spent = 0.0
    for row in (row for row in rows() if vendor in row.vendors):
        with ScriptedModel([on("", row.fault)]) as bad, ScriptedModel([on("", "well")]) as good:
            name = f"bad {row.name}"
            first = section(bad, vendor, context_tokens=1000)
            router = ground.router({name: first, "good": section(good, "openai", context_tokens=2000)})
            ground.told.clear()
            ground.pauses.succeed(scope(bad, vendor))  # a port may be one that an earlier model had
            ground.pauses.succeed(scope(good))
            began = time.time()
            assert await ask(router) == "good", row.name
            assert (bad.calls, good.calls) == (1, 1), row.name
            _check_pause(ground, row, scope(bad, vendor), f"model:{name}", began)
            assert len(ground.told) == (row.means in FOR_A_PERSON), row.name
            assert await ask(router) == "good", row.name
            assert bad.calls == (1 if row.rests else 2), f"{row.name}: what rests is not asked"
            used, reserved = ground.spent()
            assert used > spent, row.name
            costs = 2 * _price_of_the_answer() + row.unanswered * _dearest_call()
            assert used - spent == pytest.approx(costs), f"{row.name}: a refusal costs nothing, silence may"
            assert reserved == 0, row.name
            spent = used


def _price_of_the_answer() -> float:
    return (len("user: fix the bug") // 4 * PRICE[0] + 1 * PRICE[2]) / 1e6


def _dearest_call() -> float:
    return (estimated_tokens(REQUEST) * CACHE_WRITE_PRICE * PRICE[0] + REQUEST.max_tokens * PRICE[2]) / 1e6


def _check_pause(ground: Ground, row: Row, provider: str, model: str, began: float) -> None:
    found = {name: pause for name, pause in ground.pauses.active().items() if name in (provider, model)}
    assert list(found) == ([] if row.rests is None else [model if row.alone else provider]), row.name
    for pause in found.values():
        assert row.rests is not None
        assert pause.until is not None
        assert abs(pause.until.timestamp() - began - row.rests) < max(5, row.rests / 20), row.name


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.slow
async def test_without_another_model_each_failure_burns_no_attempt(ground: Ground, vendor: Vendor) -> None:
    """RB8: only a prompt that fits no model is the ticket's. Nothing is left reserved."""
    for row in (row for row in rows() if vendor in row.vendors):
        with ScriptedModel([on("", row.fault)]) as bad:
            router = ground.router({"only": section(bad, vendor)})
            with pytest.raises(FactoryError) as raised:
                await ask(router)
            assert type(raised.value) is row.means, f"{row.name}: {raised.value}"
            fault = classify(Ending(seconds=30, error=raised.value, text=str(raised.value)), datetime.now(UTC))
            assert fault.burns is (row.means is LimitReached), row.name
            assert bad.calls == 1, f"{row.name}: no client retries by itself"
    unanswered = sum(row.unanswered for row in rows() if vendor in row.vendors)
    assert ground.spent() == (pytest.approx(unanswered * _dearest_call()), 0)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", ["cut", "error_event"])
async def test_an_answer_that_broke_off_is_not_begun_again_by_another_model(
    ground: Ground, vendor: Vendor, kind: Literal["cut", "error_event"]
) -> None:
    with ScriptedModel([on("", Fault(kind=kind))]) as bad, ScriptedModel([on("", "well")]) as good:
        router, heard = ground.router({"bad": section(bad, vendor), "good": section(good)}), list[str]()
        with pytest.raises((Unreachable, CapacityUnavailable)):
            await router.for_call(Purpose(key="k", ticket="T-1")).complete(REQUEST, heard.append)
        assert (bad.calls, good.calls) == (1, 0)
        assert heard
        used, reserved = ground.spent()
        assert used > 0, "what was heard may be billed"
        assert reserved == 0
        assert await ask(router) == "good"


async def test_a_storm_of_all_failures_over_two_models_is_answered_by_the_third_without_double_spending(
    ground: Ground,
) -> None:
    now = datetime.now(UTC)
    ground.pauses = Pauses(ground.database, lambda: now)
    faults = [row.fault for row in rows() if "openai" in row.vendors and not row.unanswered]
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(ScriptedModel([on("", *answers)]))
            for answers in (faults, [*reversed(faults)], ["well"])
        )
        router = ground.router({
            "first": section(first, context_tokens=1000), "second": section(second, context_tokens=2000),
            "third": section(third, context_tokens=3000),
        })  # fmt: skip
        for number in range(len(faults)):
            assert await ask(router, f"ask-{number}") == "third"
            now += timedelta(hours=2)  # longer than any pause
        assert first.calls == third.calls == len(faults)
        assert second.calls <= len(faults)  # not asked with a prompt that was just said to be too long for it
    used, reserved = ground.spent()
    assert used == pytest.approx(len(faults) * _price_of_the_answer())
    assert reserved == 0


@pytest.mark.integration
# Prefect's event client leaves its sockets to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
async def test_a_ticket_is_worked_to_its_end_beside_a_dead_provider(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger knows who answered; the dead one is asked once, and the ticket's answers bear the level's name."""
    write_ticket(factory.board, "shop-1")
    with ScriptedModel([on("", status(401))]) as dead:
        models = {
            "dead": section(dead, tier="small"),
            "alive": section(factory.model, tier="small", timeout_seconds=60),
        }
        for name in ("MODEL", "MODEL_URL", "MODEL_TIER"):
            monkeypatch.delenv(f"DARKFACTORY_{name}")
        monkeypatch.setenv("DARKFACTORY_MODELS", json.dumps(models))
        factory.forget()
        outcome = await factory.run("shop-1")
    assert outcome.decision == "ACCEPT"
    assert dead.calls == 1
    from tasks import services

    assert {row.group: row.calls for row in services.ledger().costs("model")} == {"alive": outcome.usage.calls}
    month = services.budgets().usage()[0]
    assert month.used == pytest.approx(outcome.usage.cost_usd)
    assert month.reserved == 0


PROCESS = """
import asyncio, json, sys
from pathlib import Path
from infra.budgets import Budgets
from infra.database import Database
from infra.pauses import Pauses
from infra.sections import BudgetsSection
from tests.faults.test_provider_storm import ask, connected

url, home, models = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
with Database(url.replace("postgresql://", "postgresql+psycopg://")) as database:
    router = connected(home, models, Pauses(database), Budgets(database, BudgetsSection()), [])
    print(asyncio.run(ask(router, "other")))
"""


async def test_what_one_process_paused_another_does_not_ask(ground: Ground, database_url: str) -> None:
    with ScriptedModel([on("", status(429, retry_after="600"))]) as bad, ScriptedModel([on("", "well")]) as good:
        models = {"bad": section(bad), "good": section(good)}
        command = [sys.executable, "-c", PROCESS, database_url, str(ground.home), json.dumps(models)]
        other = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False, timeout=60,
            cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert other.stdout.strip() == "good", other.stderr
        assert (bad.calls, good.calls) == (1, 1)
        assert await ask(ground.router(models)) == "good"
        assert (bad.calls, good.calls) == (1, 2)


async def test_after_a_pause_one_of_many_tries_and_its_success_opens_the_model_for_all(
    ground: Ground, database_url: str
) -> None:
    """Eight callers, each with connections of its own, at the moment the pause ends: one call, seven go elsewhere."""
    back = Answer(text="well again", delay_seconds=1.5)
    with ScriptedModel([on("", status(503), back)]) as flaky, ScriptedModel([on("", "well")]) as steady:
        models = {"flaky": section(flaky, timeout_seconds=20), "steady": section(steady, timeout_seconds=20)}
        assert await ask(ground.router(models)) == "steady"
        pause = ground.pauses.active()[scope(flaky)]
        assert pause.until is not None
        ahead = timedelta(seconds=PASSING + 1)

        def caller(number: int) -> str:
            with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as database:
                pauses = Pauses(database, lambda: datetime.now(UTC) + ahead)
                router = connected(ground.home, models, pauses, Budgets(database, BudgetsSection()), [])
                return asyncio.run(ask(router, f"ask-{number}"))

        with ThreadPoolExecutor(8) as pool:
            answered = await asyncio.to_thread(lambda: list(pool.map(caller, range(8))))
        assert sorted(answered) == ["flaky"] + ["steady"] * 7
        assert flaky.calls == 2, "the failure and one try"
        assert await asyncio.to_thread(caller, 9) == "flaky"
    assert ground.pauses.times(scope(flaky)) == 0
