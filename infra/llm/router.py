"""One level of models behind one `ModelClient`: a call goes to the first model in the file's order that may answer, and
when that one fails before its first word, to the next.

What failed is paused in the ledger for every process and node; after the pause one call tries it again. Nothing sleeps
here. A level with one model has nowhere else to go: its errors pass as they are, and the end of the run decides.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, Protocol

from infra.errors import (
    AuthFailed,
    BudgetExhausted,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    InfraError,
    LimitReached,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from infra.llm import Completion, Frozen, ModelClient, ModelRequest, Tier
from infra.llm.anthropic_api import CACHE_WRITE_PRICE
from infra.llm.calls import Prices
from infra.llm.opening import context_of, open_model, own_name, plain_settings
from infra.notify import notify
from infra.pauses import Pauses
from infra.sections import Level, ModelSection
from infra.settings import Settings, provider_of

BYTES_PER_TOKEN = 3
"""Of code and prose have more; an estimate from it is rather too large than too small."""
PASSING_SECONDS = (5, 300)
"""First and longest pause of a provider that is unreachable, broken or full; it doubles from failure to failure."""
LIMIT_SECONDS = (300, 3600)
"""The same where a limit is reached and nobody says until when; as `tasks.failures.pause_until` has it."""
PERSON_SECONDS = (300, 1800)
"""The same where a person has to act (key, money, wrong name): then it only says when to look whether somebody did."""
PROBE_SECONDS = 120.0
"""How long the one call that tries a paused model again keeps the others away; one that died blocks no longer."""
FOR_A_PERSON = (AuthFailed, QuotaExhausted, UnknownModel)
OF_THE_PROVIDER = (RateLimited, AuthFailed, QuotaExhausted, CapacityUnavailable, Unreachable, ProviderFault)
WORST_FIRST = (BudgetExhausted, QuotaExhausted, AuthFailed, ConfigError, InfraError, LimitReached)
"""Which of several errors is raised when waiting helps with none of them: the first that there is."""

_log = logging.getLogger(__name__)


class Purpose(Frozen):
    """What a call is for. `key` names the question, so that a run that was killed goes on with its own try.

    `public`: the repository may be shown to anybody. Without a ticket nothing is reserved in the budgets.
    """

    key: str = ""
    board: str = "folder"
    ticket: str = ""
    role: str = ""
    public: bool = False


class Budget(Protocol):
    """Where money is set aside before a call. `infra.budgets.Budgets` says what the methods do."""

    def reserve(self, call_key: str, *, board: str, ticket: str, role: str, usd: float) -> None: ...

    def settle(self, call_key: str, usd: float) -> None: ...

    def release(self, call_key: str) -> None: ...


@dataclass(frozen=True)
class Route:
    """One model that calls may go to. `provider` is as `settings.provider_of` names it, `open` may fetch weights (blocks)."""

    name: str
    provider: str
    context_tokens: int
    prices: Prices
    public_only: bool
    open: Callable[[], ModelClient]

    @property
    def scopes(self) -> tuple[str, str]:
        """Among the pauses: the whole provider's, and this model's alone."""
        return f"provider:{self.provider}", f"model:{self.name}"

    def usd(self, prompt_tokens: float, written_tokens: float) -> float:
        """The most that so many tokens cost: none is cached yet, and some are billed for being cached."""
        return (prompt_tokens * CACHE_WRITE_PRICE * self.prices[0] + written_tokens * self.prices[2]) / 1e6


class Refusal(NamedTuple):
    """Why a route did not answer. `until`: when it may again, None where waiting does not help."""

    error: FactoryError
    until: datetime | None = None


class Router:
    """`ModelClient` of a level. Its name does not change with who answers: it goes into cache keys and jobs.

    `Completion.model` is the name of the route that answered.
    """

    def __init__(
        self,
        name: str,
        tier: Tier,
        routes: Sequence[Route],
        pauses: Callable[[], Pauses],
        budget: Callable[[], Budget],
        tell: Callable[[str, str, str], object],
    ) -> None:
        """`tell` gets title, text and key of what people have to know. Ledger and budget are opened by the first call."""
        self.name, self.tier = name, tier
        self.context_tokens = max(route.context_tokens for route in routes)
        self.routes, self.pauses, self.budget, self.tell = tuple(routes), pauses, budget, tell
        self._clients: dict[str, ModelClient] = {}

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As `for_call` without a purpose: for no ticket, and by models that may see private code."""
        return await self.for_call(Purpose()).complete(request, on_text)

    def for_call(self, purpose: Purpose) -> Call:
        """The client for one question."""
        return Call(self, purpose)

    def provider(self, name: str) -> str:
        """Who is behind the route of this name."""
        return next(route.provider for route in self.routes if route.name == name)

    async def check(self) -> str:
        """Whether the first model that can be opened answers."""
        return await (await self.ready()).check()

    async def ready(self) -> ModelClient:
        """Open the first model that can be opened. Raises what the first one raised when none can."""
        errors: list[FactoryError] = []
        for route in self.routes:
            try:
                return await self.client(route)
            except FactoryError as error:
                errors.append(error)
        raise errors[0]

    async def client(self, route: Route) -> ModelClient:
        """The route's own client, opened when first asked for."""
        if route.name not in self._clients:
            self._clients[route.name] = await asyncio.to_thread(route.open)
        return self._clients[route.name]


class Call:
    """One question to a level: `ModelClient` for a single `complete`."""

    def __init__(self, router: Router, purpose: Purpose) -> None:
        self.name, self.tier, self.context_tokens = router.name, router.tier, router.context_tokens
        self._router, self._purpose = router, purpose
        self._probe = purpose.key or secrets.token_hex(8)
        self._alone = len(router.routes) == 1

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As the protocol says, of the first route that answers; once a word has come, its failure is the call's.

        When none answers: RateLimited with the earliest moment at which one may, else the gravest of their errors
        (BudgetExhausted too).
        """
        refusals: list[Refusal] = []
        prompt_tokens, too_long_for = estimated_tokens(request), 0
        largest = max((route.context_tokens for route in self._router.routes if self._may_see(route)), default=0)
        for route in self._router.routes:
            needed = min(prompt_tokens + request.max_tokens, largest)  # beyond that the endpoint decides, no estimate
            refusal = self._unfit(route, max(needed, too_long_for + 1))
            if refusal is None:
                answer = await self._ask(route, request, prompt_tokens, on_text)
                if isinstance(answer, Completion):
                    return answer
                refusal = answer
                _log.warning("model=%s outcome=refused ticket=%s reason=%r", route.name, self._purpose.ticket, str(refusal.error))  # fmt: skip
                if isinstance(refusal.error, LimitReached):
                    too_long_for = max(too_long_for, route.context_tokens)
            refusals.append(refusal)
        raise most_useful(self.name, refusals)

    async def check(self) -> str:
        return await self._router.check()

    def _may_see(self, route: Route) -> bool:
        return self._purpose.public or not route.public_only

    def _unfit(self, route: Route, tokens: int) -> Refusal | None:
        if not self._may_see(route):
            return Refusal(
                ConfigError(
                    f"the model {route.name!r} is `trust: public` and the repository is not `public: true`; give the level "
                    "a model that may see private code"
                )
            )
        if tokens > route.context_tokens:
            return Refusal(LimitReached(f"about {tokens} tokens do not fit into the context of {route.name!r}"))
        return None

    async def _ask(
        self, route: Route, request: ModelRequest, prompt_tokens: int, on_text: Callable[[str], None] | None
    ) -> Completion | Refusal:
        reservation = f"{self._purpose.key}-{secrets.token_hex(4)}"  # a key per try: each may be billed
        most = route.usd(prompt_tokens, request.max_tokens)
        if refusal := await asyncio.to_thread(self._enter, route, reservation, most):
            return refusal
        heard = Heard(on_text)
        try:
            completion = await (await self._router.client(route)).complete(request, heard)
        except FactoryError as error:
            final = heard.bytes > 0 or not isinstance(error, InfraError | ConfigError | LimitReached)
            paid = route.usd(prompt_tokens, heard.bytes / BYTES_PER_TOKEN) if final else 0.0
            if isinstance(error, Unreachable) and error.may_be_billed and not heard.bytes:
                paid = most
            until = await asyncio.to_thread(self._failed, route, error, reservation, paid)
            if final:
                raise
            return Refusal(error, until)
        await asyncio.to_thread(self._worked, route, reservation, completion.usage.cost_usd)
        return completion.model_copy(update={"model": route.name})

    # What follows blocks.

    def _enter(self, route: Route, reservation: str, usd: float) -> Refusal | None:
        """Set the money aside, then pass the pauses: who does may be the one call that tries again."""
        purpose = self._purpose
        if purpose.ticket:
            try:
                self._router.budget().reserve(
                    reservation, board=purpose.board, ticket=purpose.ticket, role=purpose.role, usd=usd
                )
            except BudgetExhausted as error:
                return Refusal(error)
        pause = None if self._alone else self._router.pauses().enter(route.scopes, self._probe, PROBE_SECONDS)
        if pause is None:
            return None
        self._settle(reservation, 0.0)
        said = f"the model {route.name!r} is not asked: {pause.scope} is paused ({pause.reason})"
        if pause.until is None:
            return Refusal(QuotaExhausted(f"{said} until `darkfactory resume {pause.scope}`"))
        return Refusal(RateLimited(f"{said} until {pause.until:%Y-%m-%d %H:%M:%S} UTC", pause.until), pause.until)

    def _settle(self, reservation: str, usd: float) -> None:
        if not self._purpose.ticket:
            return
        if usd:
            self._router.budget().settle(reservation, usd)
        else:
            self._router.budget().release(reservation)

    def _worked(self, route: Route, reservation: str, usd: float) -> None:
        self._settle(reservation, usd)
        if not self._alone:
            self._router.pauses().prove(route.scopes, self._probe)

    def _failed(self, route: Route, error: FactoryError, reservation: str, usd: float) -> datetime | None:
        """Settle, pause what is to blame, tell people once. Until when the route rests; None where waiting does not help."""
        self._settle(reservation, usd)
        if self._alone and isinstance(error, OF_THE_PROVIDER):
            error.service = route.scopes[0]  # what the end of the run pauses
        if self._alone:
            return None
        until, is_news = self._pause(route, error)
        if not isinstance(error, (*FOR_A_PERSON, ConfigError)):
            return until
        if is_news:
            self._router.tell(f"the model {route.name!r} is skipped", str(error), f"model:{route.name}")
        return None

    def _pause(self, route: Route, error: FactoryError) -> tuple[datetime | None, bool]:
        """Until when, and whether people do not know yet. A request that was refused says little about the model."""
        pauses, (provider, model) = self._router.pauses(), route.scopes
        if isinstance(error, InfraError):
            return pauses.trip(provider, str(error), self._probe, partial(rest, error))
        pauses.prove([provider], self._probe)  # it answered
        if isinstance(error, UnknownModel):
            return pauses.trip(model, str(error), self._probe, partial(rest, error))
        pauses.prove([model], self._probe)
        return None, True


class Heard:
    """Hands the words on and counts them."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self.bytes, self._on_text = 0, on_text

    def __call__(self, piece: str) -> None:
        self.bytes += len(piece.encode())
        if self._on_text:
            self._on_text(piece)


def open_router(settings: Settings, level: Level, pauses: Callable[[], Pauses], budget: Callable[[], Budget]) -> Router:
    """The models of a level; opens none of them. Without `models` in the settings its name is the model's own.

    Raises ConfigError when there are none, or when budgets are set and a price is not known.
    """
    models = settings.of_level(level)
    if not models:
        raise ConfigError(f"no model has the level {level!r}; add one to `models` in factory.yaml")
    routes = [_route(settings, name, section) for name, section in models.items()]
    return Router(
        name=f"{level}:{'+'.join(models)}" if settings.models else routes[0].name,
        tier=next(iter(models.values())).actual_tier,
        routes=routes,
        pauses=pauses,
        budget=budget,
        tell=lambda title, text, key: notify(settings.notify, title, text, key=key),
    )


def _route(settings: Settings, name: str, section: ModelSection) -> Route:
    alone = plain_settings(settings, section)
    return Route(
        name=name if settings.models else own_name(section.model),
        provider=provider_of(section.model, section.url, settings.node_name),
        context_tokens=context_of(alone),
        prices=alone.model_usd_per_million_tokens,
        public_only=section.trust == "public",
        open=partial(open_model, alone),
    )


def estimated_tokens(request: ModelRequest) -> int:
    """Tokens of the prompt with its tools and schema, rather too many than too few."""
    return len(request.model_dump_json().encode()) // BYTES_PER_TOKEN


def rest(error: FactoryError, now: datetime, times: int) -> datetime:
    """Until when what failed with `error` for the `times`-th time in a row is left alone."""
    if isinstance(error, RateLimited) and error.reset_at is not None and error.reset_at > now:
        return error.reset_at
    first, longest = PASSING_SECONDS
    if isinstance(error, FOR_A_PERSON):
        first, longest = PERSON_SECONDS
    elif isinstance(error, RateLimited):
        first, longest = LIMIT_SECONDS
    return now + timedelta(seconds=min(first * 2 ** min(times - 1, 10), longest))


def most_useful(level: str, refusals: Sequence[Refusal]) -> FactoryError:
    """What a caller can act on: when to ask again if waiting helps with any route, else the gravest error."""
    if len(refusals) == 1:
        return refusals[0].error
    waits = [refusal.until for refusal in refusals if refusal.until is not None]
    if waits:
        said = "; ".join(str(refusal.error) for refusal in refusals)
        return RateLimited(f"no model of {level!r} answers now: {said}", min(waits))
    return next(refusal.error for group in WORST_FIRST for refusal in refusals if isinstance(refusal.error, group))
