"""From settings to a model: the one place that knows which setting means which client."""

from __future__ import annotations

import os
from functools import partial

from infra.errors import ConfigError
from infra.llm import ModelClient
from infra.llm.anthropic_api import AnthropicClient
from infra.llm.local import LocalClient, ensure_server
from infra.llm.openai_api import OpenAIClient
from infra.llm.weights import EMBEDDED, Progress, ensure_weights, verify_weights
from infra.prices import price_of
from infra.sections import ModelSection
from infra.settings import Settings, provider_of

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
EMBEDDED_CONTEXT_TOKENS = 16_384
"""Shared by the slots of the embedded server."""
REMOTE_CONTEXT_TOKENS = 128_000
CORES_PER_SLOT = 4
"""Two calls at once on two cores are no faster than one after the other, and the second reads the shared prompt again."""


def open_model(settings: Settings, progress: Progress | None = None) -> ModelClient:
    """The model that the settings name. `embedded` fetches or verifies its weights here; its server starts with the first call.

    `progress` gets the bytes there and the bytes in all while weights are fetched. Raises ConfigError, or what
    `ensure_weights` raises.
    """
    provider, _, name = settings.model.partition("/")
    if settings.model == "embedded":
        return _open_embedded(settings, progress)
    if provider == "openai" and name:
        return _open_openai(settings, name)
    if provider == "anthropic" and name:
        return _open_anthropic(settings, name)
    raise ConfigError(
        f"`model` is {settings.model!r}; use 'embedded', 'openai/MODEL' (any compatible endpoint) or 'anthropic/MODEL'"
    )


def plain_settings(settings: Settings, section: ModelSection) -> Settings:
    """The settings as if `section` were their one model. Raises ConfigError where there are caps and no price is known."""
    provider = provider_of(section.model, section.url, settings.node_name)
    price = price_of(section.model, section.usd_per_million_tokens, provider, capped=settings.budgets.in_usd)
    return settings.model_copy(
        update={
            "model": section.model,
            "model_url": section.url,
            "model_key": section.key,
            "model_tier": section.actual_tier,
            "model_context_tokens": section.context_tokens,
            "model_timeout_seconds": section.timeout_seconds or settings.model_timeout_seconds,
            "model_usd_per_million_tokens": price,
        }
    )


def own_name(model: str) -> str:
    """What the provider calls the model of the setting `model`; also where it stands alone, in cache keys and ledgers."""
    return EMBEDDED.name if model == "embedded" else model.partition("/")[2]


def context_of(settings: Settings) -> int:
    """Tokens that one call to the model may use."""
    if settings.model_context_tokens:
        return settings.model_context_tokens
    if settings.model == "embedded":
        return EMBEDDED_CONTEXT_TOKENS // server_slots(settings.model_slots, os.cpu_count() or 1)
    return REMOTE_CONTEXT_TOKENS


def _open_embedded(settings: Settings, progress: Progress | None) -> LocalClient:
    folder, slots = settings.root / "weights", server_slots(settings.model_slots, os.cpu_count() or 1)
    given = settings.weights_path
    weights = verify_weights(given.expanduser(), folder) if given else ensure_weights(folder, progress)
    per_call = context_of(settings)
    return LocalClient(
        name=EMBEDDED.name,
        start=partial(ensure_server, settings.root, weights, slots, per_call * slots),
        tier=settings.tier,
        context_tokens=per_call,
        timeout_seconds=settings.model_timeout_seconds,
    )


def server_slots(calls: int, cores: int) -> int:
    """Slots of the embedded server; calls beyond them wait inside the server."""
    return max(1, min(calls, cores // CORES_PER_SLOT))


def _open_openai(settings: Settings, name: str) -> OpenAIClient:
    return OpenAIClient(
        name=name,
        base_url=settings.model_url or OPENAI_URL,
        api_key=_key(settings, "OPENAI_API_KEY"),
        tier=settings.tier,
        context_tokens=context_of(settings),
        timeout_seconds=settings.model_timeout_seconds,
        usd_per_million_tokens=settings.model_usd_per_million_tokens,
    )


def _open_anthropic(settings: Settings, name: str) -> AnthropicClient:
    return AnthropicClient(
        name=name,
        base_url=settings.model_url or ANTHROPIC_URL,
        api_key=_key(settings, "ANTHROPIC_API_KEY"),
        tier=settings.tier,
        context_tokens=context_of(settings),
        timeout_seconds=settings.model_timeout_seconds,
        usd_per_million_tokens=settings.model_usd_per_million_tokens,
    )


def _key(settings: Settings, variable: str) -> str | None:
    """The key; an endpoint of one's own may need none. An empty one is a missing one (CF4)."""
    given = settings.model_key.get_secret_value() if settings.model_key else os.environ.get(variable, "")
    if given.strip() or settings.model_url:
        return given.strip() or None
    raise ConfigError(
        f"`model` is {settings.model!r} and there is no API key; set {variable} or DARKFACTORY_MODEL_KEY in the environment"
    )
