"""What a model costs: the settings' own prices, else the list of the package genai-prices as it was installed.

Nothing is fetched: a price that changed since comes with a newer package, or from `usd_per_million_tokens`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from infra.errors import ConfigError
from infra.llm.calls import Prices

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

FREE: Prices = (0.0, 0.0, 0.0)
_log = logging.getLogger(__name__)


def price_of(
    model: str, override: Prices | None = None, provider: str | None = None, *, capped: bool = False
) -> Prices:
    """USD per million prompt, cached prompt and completion tokens.

    `model` is the setting (`openai/gpt-5`) or the bare name; `provider` who answers, as `settings.provider_of` names it.
    `override` wins. `embedded`, and what a private address answers, is free. A model that nobody knows is free, too, and
    that is logged once; where caps in USD are set (`capped`) it is a ConfigError, because they would mean nothing.
    """
    kind, _, address = (provider or "").partition("@")
    host = address.rpartition("@")[2]
    if override is not None:
        return override
    if "embedded" in (model, kind) or (host and is_private(host)):
        return FREE
    listed = _listed(_bare(model, kind), kind, host)
    if listed is None and capped:
        raise ConfigError(
            f"the price of model {model!r} is not known, so `budgets` cannot hold; set its `usd_per_million_tokens` in "
            "factory.yaml (`model_usd_per_million_tokens` for `model`), or take the caps in USD away"
        )
    if listed is None:
        _say_once(model)
    return listed or FREE


def is_private(host: str) -> bool:
    """Whether an address (`host` or `host:port`) is this machine's or of a private network, where no provider bills."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ip_address(name).is_private
    except ValueError:
        return "." not in name or name.endswith((".local", ".lan", ".internal", ".localhost"))


def _bare(model: str, kind: str) -> str:
    """The name that the provider knows: `openai/` and `anthropic/` before it name our client."""
    first, _, rest = model.partition("/")
    return rest if rest and first == (kind or first) and first in ("openai", "anthropic") else model


@cache
def _say_once(model: str) -> None:
    _log.warning("model=%s outcome=unpriced reason='no price is known, its calls count as free'", model)


@cache
def _listed(name: str, kind: str, host: str) -> Prices | None:
    """The standard price of today; prompts beyond a length that some models charge more for are not told apart."""
    from genai_prices.data_snapshot import get_snapshot  # most of a second, and needed for paid models only

    snapshot = get_snapshot()
    for reference, identifier, url in _places(name, kind, host):
        try:
            _, model = snapshot.find_provider_model(reference, None, identifier, url)
        except LookupError:
            continue
        if (prices := _prices(model)) is not None:
            return prices
    return None


def _places(name: str, kind: str, host: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Where the list may know the model, the surest first: its endpoint, its vendor, a vendor in its name, any vendor."""
    if host:
        yield name, None, f"https://{host}"
        yield name, None, f"https://{host}/v1"
    if kind:
        yield name, kind, None
    vendor, _, rest = name.partition("/")
    if rest:
        yield rest, vendor, None
    yield name, None, None


def _prices(model: ModelInfo) -> Prices | None:
    """None for a model that is not priced by tokens. Without a price of its own a cached token costs as a fresh one."""
    listed = model.get_prices(datetime.now(UTC))
    prompt, completion = _base(listed.input_mtok), _base(listed.output_mtok)
    if prompt is None or completion is None:
        return None
    cached = _base(listed.cache_read_mtok)
    return prompt, prompt if cached is None else cached, completion


def _base(price: Any) -> float | None:
    """A price, or that of the shortest prompts."""
    return None if price is None else float(getattr(price, "base", price))
