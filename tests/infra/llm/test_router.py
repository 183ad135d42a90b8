"""One level of several models: who answers, who is skipped, and what each call costs. Real HTTP and a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.budgets import Budgets
from infra.database import Database
from infra.errors import (
    AuthFailed,
    BudgetExhausted,
    ConfigError,
    InvalidOutput,
    LimitReached,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from infra.llm import Message, ModelRequest
from infra.llm.router import LIMIT_SECONDS, PASSING_SECONDS, PERSON_SECONDS, PROBE_SECONDS, Purpose, Router, open_router
from infra.llm.scripted import Answer, Fault, ScriptedModel, on
from infra.pauses import Pauses
from infra.sections import BudgetsSection
from infra.settings import Settings, parse_settings

REQUEST = ModelRequest(messages=(Message(role="user", content="fix the bug"),), max_tokens=100)
PURPOSE = Purpose(key="ask-1", ticket="T-1", role="coder")
REFUSED = Fault(kind="status", status=401)
BUSY = Fault(kind="status", status=503)
LIMIT = Fault(kind="status", status=429)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class World:
    """A ledger with a clock that is moved by hand, models by name, and what people were told."""

    def __init__(self, database: Database, home: Path, stack: ExitStack) -> None:
        self.clock, self.home, self._stack = Clock(), home, stack
        self.pauses = Pauses(database, self.clock)
        self._database = database
        self.budgets = Budgets(database, BudgetsSection())
        self.models: dict[str, ScriptedModel] = {}
        self.told: list[str] = []

    def cap(self, **caps: Any) -> None:
        self.budgets = Budgets(self._database, BudgetsSection(**caps))

    def model(self, name: str, *answers: str | Fault | Answer) -> ScriptedModel:
        self.models[name] = self._stack.enter_context(ScriptedModel([on("", *answers)]))
        return self.models[name]

    def router(self, **options: dict[str, Any]) -> Router:
        """Of all models, in the order in which they were made; `options` are fields of their sections by name."""
        sections = {
            name: {"model": f"openai/{name}", "url": model.openai_url, **options.get(name, {})}
            for name, model in self.models.items()
        }
        settings = Settings(home=self.home, models=sections)
        found = open_router(settings, "usual", lambda: self.pauses, lambda: self.budgets)
        found.tell = lambda title, text, key: self.told.append(f"{title}: {text}")
        return found

    def calls(self) -> dict[str, int]:
        return {name: model.calls for name, model in self.models.items()}

    def scope(self, name: str) -> str:
        return f"provider:openai@{self.models[name].url.removeprefix('http://')}"


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        url = database_url.replace("postgresql://", "postgresql+psycopg://")
        yield World(stack.enter_context(Database(url)), tmp_path, stack)


async def ask(router: Router, purpose: Purpose = PURPOSE, request: ModelRequest = REQUEST) -> str:
    """Who answered."""
    return (await router.for_call(purpose).complete(request)).model


def test_a_level_of_plain_settings_is_named_like_its_model(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, model="openai/org/m1", model_url="http://127.0.0.1:1/v1", model_tier="small",
                        strong={"model": "anthropic/opus", "url": "http://127.0.0.1:1", "context_tokens": 500_000})  # fmt: skip
    usual, strong = (open_router(settings, level, _none, _none) for level in ("usual", "strong"))  # type: ignore[arg-type]
    assert (usual.name, usual.tier, usual.context_tokens) == ("org/m1", "small", 128_000)
    assert (strong.name, strong.tier, strong.context_tokens) == ("opus", "capable", 500_000)


def test_a_level_of_several_keeps_its_name_whoever_answers_and_has_the_largest_context(world: World) -> None:
    world.model("local", "a"), world.model("cloud", "b")
    router = world.router(local={"context_tokens": 8_000}, cloud={"context_tokens": 200_000})
    assert (router.name, router.tier, router.context_tokens) == ("usual:local+cloud", "capable", 200_000)


def _none() -> Any:
    raise AssertionError("nothing is asked before the first call")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models:\n  a: {model: embedded}\n  b: {model: openai/x}\n", ["line 3: models.b", "small"]),
        ("models:\n  a: {model: openai/x, level: strong}\n", ["models", "level: usual"]),
        ("model: openai/x\nmodels:\n  a: {model: openai/x}\n", ["line 1: model", "takes its place"]),
        ("roles:\n  judge: {level: strong}\n", ["roles.judge", "no"]),
        ("roles:\n  coder: {strong_from_effort: 4}\n", ["roles.coder", "no"]),
    ],
)
def test_models_that_cannot_stand_in_for_each_other_are_a_mistake_in_the_file(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "factory.yaml")
    (line,) = [line for line in str(caught.value).splitlines()[1:] if line.strip()]
    assert all(word in line for word in words), line


async def test_the_first_of_the_file_answers_and_is_named_as_the_one_that_did(world: World) -> None:
    world.model("local", "a"), world.model("cloud", "b")
    assert await ask(world.router()) == "local"
    assert world.calls() == {"local": 1, "cloud": 0}
    assert world.pauses.active() == {}


async def test_what_fails_before_its_first_word_is_paused_and_the_next_one_asked(world: World) -> None:
    """RB8: the fault is nobody's attempt."""
    world.model("local", BUSY, "a"), world.model("cloud", "b")
    router = world.router()
    assert [await ask(router), await ask(router)] == ["cloud", "cloud"]
    assert world.calls() == {"local": 1, "cloud": 2}
    assert list(world.pauses.active()) == [world.scope("local")]
    world.clock.move(PASSING_SECONDS[0] + 1)
    assert await ask(router) == "local"
    assert world.pauses.times(world.scope("local")) == 0, "its history is forgotten"


async def test_an_answer_that_was_begun_is_not_begun_again_elsewhere(world: World) -> None:
    world.model("local", Fault(kind="cut")), world.model("cloud", "b")
    router, heard = world.router(local={"usd_per_million_tokens": [1, 1, 1000]}), list[str]()
    with pytest.raises(Unreachable, match="cut"):
        await router.for_call(PURPOSE).complete(REQUEST, heard.append)
    assert heard
    assert world.calls() == {"local": 1, "cloud": 0}
    (month, _) = world.budgets.usage()
    assert month.used > 0, "what was heard is paid"
    assert month.reserved == 0
    assert await ask(router) == "cloud", "the next try of the question goes on elsewhere"


async def test_an_unusable_answer_is_the_models_work_and_asked_nowhere_else(world: World) -> None:
    stopped = 'data: {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}\n\n'
    world.model("local", Fault(kind="status", status=200, headers={"content-type": "text/event-stream"}, body=stopped))
    world.model("cloud", "b")
    with pytest.raises(InvalidOutput):
        await ask(world.router())
    assert world.calls() == {"local": 1, "cloud": 0}
    assert world.pauses.active() == {}


async def test_a_pause_grows_from_failure_to_failure_and_only_a_success_forgets_it(world: World) -> None:
    world.model("local", BUSY), world.model("cloud", "b")
    router, first = world.router(), PASSING_SECONDS[0]
    for seconds in (first, 2 * first, 4 * first, 8 * first):
        assert await ask(router) == "cloud"
        pause = world.pauses.active()[world.scope("local")]
        assert pause.until == world.clock.now + timedelta(seconds=seconds)
        world.clock.move(seconds + 0.1)
    assert world.calls()["local"] == 4


async def test_after_a_pause_one_call_tries_and_the_others_go_elsewhere(world: World) -> None:
    world.model("local", BUSY, "a"), world.model("cloud", "b")
    router = world.router()
    await ask(router)
    world.clock.move(PASSING_SECONDS[0] + 1)
    assert world.pauses.enter(["model:local", world.scope("local")], "the one that tries", PROBE_SECONDS) is None
    assert await ask(router) == "cloud"
    world.clock.move(PROBE_SECONDS + 1)
    assert await ask(router) == "local", "the one that tried died"


async def test_a_killed_run_goes_on_with_its_own_try(world: World) -> None:
    world.model("local", BUSY, "a"), world.model("cloud", "b")
    router = world.router()
    await ask(router)
    world.clock.move(PASSING_SECONDS[0] + 1)
    assert world.pauses.enter([world.scope("local")], PURPOSE.key, PROBE_SECONDS) is None
    assert await ask(router, PURPOSE.model_copy(update={"key": "ask-2"})) == "cloud"
    assert await ask(router) == "local"


async def test_people_are_told_once_of_what_only_they_can_mend(world: World) -> None:
    world.model("local", REFUSED, REFUSED, "a"), world.model("cloud", "b")
    router = world.router()
    assert await ask(router) == "cloud"
    world.clock.move(PERSON_SECONDS[0] + 1)
    assert await ask(router) == "cloud"
    assert len(world.told) == 1
    assert "model_key" in world.told[0]
    pause = world.pauses.active()[world.scope("local")]
    assert pause.until == world.clock.now + timedelta(seconds=2 * PERSON_SECONDS[0])
    world.clock.move(2 * PERSON_SECONDS[0] + 1)
    assert await ask(router) == "local"


async def test_a_wrong_name_closes_that_model_and_not_its_provider(world: World) -> None:
    served = world.model("wrong", Fault(kind="status", status=404), "a")
    world.models["right"] = served
    router = world.router()
    assert await ask(router) == "right"
    assert list(world.pauses.active()) == ["model:wrong"]
    assert len(world.told) == 1


async def test_a_refused_request_is_told_and_asked_elsewhere_but_closes_nothing(world: World) -> None:
    """Nobody knows whether the request or the endpoint is wrong: a ticket must not close a model for all others."""
    refusal = Fault(
        kind="status", status=400, body={"error": {"message": "bad field", "type": "invalid_request_error"}}
    )
    world.model("local", refusal), world.model("cloud", "b")
    assert await ask(world.router()) == "cloud"
    assert world.pauses.active() == {}
    assert len(world.told) == 1


async def test_what_a_person_paused_is_not_asked(world: World) -> None:
    world.model("local", "a"), world.model("cloud", "b")
    world.pauses.pause(world.scope("local"), "by hand", None, by_hand=True)
    assert await ask(world.router()) == "cloud"
    assert world.calls()["local"] == 0


async def test_when_all_wait_the_earliest_reset_is_named(world: World) -> None:
    world.model("a", Fault(kind="status", status=429, headers={"retry-after": "900"}))
    world.model("b", Fault(kind="status", status=429, headers={"retry-after": "60"}))
    world.model("c", Fault(kind="status", status=401))
    router = world.router()
    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            await ask(router)
        assert caught.value.reset_at is not None
        assert abs(caught.value.reset_at - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=15)
    assert world.calls() == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ((REFUSED, Fault(kind="status", status=402)), QuotaExhausted),
        ((Fault(kind="status", status=404), REFUSED), AuthFailed),
        ((Fault(kind="status", status=404), Fault(kind="status", status=404)), UnknownModel),
        ((Fault(kind="status", status=413), Fault(kind="status", status=413)), LimitReached),
    ],
)
async def test_when_waiting_helps_with_none_the_gravest_is_raised(
    world: World, faults: tuple[Fault, Fault], expected: type[Exception]
) -> None:
    for name, fault in zip("ab", faults, strict=True):
        world.model(name, fault)
    with pytest.raises(expected):
        await ask(world.router(a={"context_tokens": 1000}, b={"context_tokens": 2000}))


async def test_code_that_is_not_public_is_not_shown_to_models_that_may_learn_from_it(world: World) -> None:
    world.model("free", "a"), world.model("own", "b")
    router = world.router(free={"trust": "public"})
    assert await ask(router) == "own"
    assert world.calls()["free"] == 0
    assert await ask(router, PURPOSE.model_copy(update={"public": True})) == "free"


async def test_a_level_of_public_models_alone_says_so_for_private_code(world: World) -> None:
    world.model("free", "a")
    with pytest.raises(ConfigError, match="public: true"):
        await ask(world.router(free={"trust": "public"}))
    assert world.calls()["free"] == 0


async def test_a_prompt_that_does_not_fit_goes_to_a_larger_context(world: World) -> None:
    too_long = Fault(kind="status", status=400, body={"error": {"message": "prompt is too long: 9 tokens > 8"}})
    world.model("small", "a"), world.model("mistaken", too_long), world.model("same", "b"), world.model("large", "c")
    router = world.router(small={"context_tokens": 200}, mistaken={"context_tokens": 2000},
                          same={"context_tokens": 2000}, large={"context_tokens": 9000})  # fmt: skip
    long = REQUEST.model_copy(update={"messages": (Message(role="user", content="word " * 300),)})
    assert await ask(router, request=long) == "large"
    assert world.calls() == {"small": 0, "mistaken": 1, "same": 0, "large": 1}
    assert world.pauses.active() == {}
    assert await ask(router) == "small"


async def test_an_estimate_alone_never_says_that_the_largest_is_too_small(world: World) -> None:
    """LimitReached burns an attempt, so only an endpoint may say it."""
    world.model("a", "x"), world.model("b", "y")
    long = REQUEST.model_copy(update={"messages": (Message(role="user", content="word " * 2000),)})
    assert await ask(world.router(a={"context_tokens": 100}, b={"context_tokens": 200}), request=long) == "b"


async def test_an_estimate_does_not_refuse_the_largest_that_may_see_the_code(world: World) -> None:
    world.model("own", "x"), world.model("free", "y")
    long = REQUEST.model_copy(update={"messages": (Message(role="user", content="word " * 2000),)})
    router = world.router(own={"context_tokens": 100}, free={"context_tokens": 9000, "trust": "public"})
    assert await ask(router, request=long) == "own"


async def test_a_refusal_that_proves_a_provider_well_ends_its_pause(world: World) -> None:
    too_long = Fault(kind="status", status=413)
    world.model("local", BUSY, too_long, "a"), world.model("cloud", "b")
    router = world.router(local={"context_tokens": 1000}, cloud={"context_tokens": 2000})
    assert await ask(router) == "cloud"
    world.clock.move(PASSING_SECONDS[0] + 1)
    assert await ask(router) == "cloud", "it tried, and said that the prompt is too long"
    assert await ask(router, PURPOSE.model_copy(update={"key": "ask-2"})) == "local"


async def test_money_is_reserved_at_the_dearest_and_settled_at_what_the_answer_cost(world: World) -> None:
    """RB11."""
    world.model("local", BUSY), world.model("cloud", "b" * 40)
    router = world.router(
        local={"usd_per_million_tokens": [900, 90, 900]}, cloud={"usd_per_million_tokens": [1000, 100, 10_000]}
    )
    answered = await router.for_call(PURPOSE).complete(REQUEST)
    month, _ = world.budgets.usage()
    assert answered.usage.cost_usd > 0
    assert month.used == pytest.approx(answered.usage.cost_usd)
    assert month.reserved == 0


async def test_a_call_that_reached_the_provider_and_was_never_answered_counts_at_its_dearest(world: World) -> None:
    """RB11: it may be billed. One that never got through is not."""
    dear = {"usd_per_million_tokens": [1000, 100, 10_000], "timeout_seconds": 0.3}
    world.model("silent", Fault(kind="silent", seconds=1)), world.model("cloud", "b")
    assert await ask(world.router(silent=dear)) == "cloud"
    assert world.budgets.usage()[0].used > 1.0, "100 tokens at 10,000 USD a million, and the prompt"

    away = Settings(home=world.home, models={"away": {"model": "openai/away", "url": "http://127.0.0.1:1/v1", **dear}})
    used = world.budgets.usage()[0].used
    with pytest.raises(Unreachable):
        await ask(open_router(away, "usual", lambda: world.pauses, lambda: world.budgets))
    assert world.budgets.usage()[0].used == used


async def test_a_dear_model_whose_budget_is_gone_leaves_the_work_to_a_cheap_one(world: World) -> None:
    world.cap(ticket_usd=0.01)
    world.model("dear", "a"), world.model("free", "b")
    router = world.router(dear={"usd_per_million_tokens": [100, 10, 1000]})
    assert await ask(router) == "free"
    assert world.calls()["dear"] == 0
    world.models.pop("free")
    with pytest.raises(BudgetExhausted):
        await ask(world.router(dear={"usd_per_million_tokens": [100, 10, 1000]}))


async def test_a_model_without_a_price_is_a_mistake_where_budgets_are_set(tmp_path: Path) -> None:
    unknown = {"m": {"model": "openai/no-such-model-9", "url": "https://models.example.com/v1"}}
    settings = Settings(home=tmp_path, models=unknown, budgets={"day_usd": 5})
    with pytest.raises(ConfigError, match="usd_per_million_tokens"):
        open_router(settings, "usual", _none, _none)


async def test_one_model_alone_is_asked_whatever_is_paused_and_its_errors_pass(world: World) -> None:
    """There is nowhere else to go: the run's end decides what pauses, as it does without `models`."""
    world.model("only", LIMIT, "a")
    router = world.router()
    with pytest.raises(RateLimited) as caught:
        await ask(router)
    assert caught.value.service == world.scope("only")
    assert world.pauses.active() == {}
    world.pauses.pause(world.scope("only"), "a limit", world.clock.now + timedelta(seconds=LIMIT_SECONDS[0]))
    assert await ask(router) == "only"


async def test_a_model_that_cannot_be_opened_is_a_fault_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    world.model("local", "a"), world.model("cloud", "b")
    router = world.router(local={"url": None, "model": "openai/x"})
    assert await ask(router) == "cloud"
    assert "OPENAI_API_KEY" in world.told[0]
    assert await router.check()
