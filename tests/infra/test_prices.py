"""Prices: the package's list as it lies on the disk, what wins over it, what is free, and what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from infra import prices
from infra.errors import ConfigError
from infra.llm import Message, ModelRequest
from infra.llm.anthropic_api import AnthropicClient
from infra.llm.scripted import Fault, ScriptedModel, on
from infra.prices import FREE, is_private, price_of
from infra.sections import BudgetsSection


@pytest.mark.parametrize(
    ("model", "provider", "price"),
    [
        ("openai/gpt-5", "openai", (1.25, 0.125, 10)),
        ("gpt-5", "codex", (1.25, 0.125, 10)),
        ("anthropic/claude-sonnet-4-5", "anthropic", (3, 0.3, 15)),
        ("anthropic/claude-sonnet-4-5", None, (3, 0.3, 15)),
        ("openai/openai/gpt-4.1-mini", "openai@models.example.com", (0.4, 0.1, 1.6)),
        ("openai/anthropic/claude-sonnet-4.5", "openai@openrouter.ai", (3, 0.3, 15)),
        ("openai/llama-3.3-70b-versatile", "openai@api.groq.com", (0.59, 0.59, 0.79)),
    ],
)
def test_the_list_knows_what_a_model_costs_where_it_is_asked(
    model: str, provider: str | None, price: tuple[float, float, float]
) -> None:
    """A6. These figures change with the package; each is the vendor's published price of a dated model."""
    assert price_of(model, provider=provider, capped=True) == price


def test_a_price_of_ones_own_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "_listed", lambda *_: pytest.fail("nobody needs the list"))
    assert price_of("openai/gpt-5", (1, 2, 3), "openai") == (1, 2, 3)
    assert price_of("openai/gpt-5", FREE, "openai") == FREE


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("embedded", None),
        ("qwen2.5-coder", "embedded@node-1"),
        ("openai/gpt-5", "openai@127.0.0.1:8000"),
        ("openai/gpt-5", "openai@[::1]:8000"),
        ("openai/qwen3", "openai@gpu-box:8000"),
        ("openai/qwen3", "openai@10.1.2.3"),
    ],
)
def test_what_runs_on_machines_of_ones_own_is_free(model: str, provider: str | None) -> None:
    assert price_of(model, provider=provider, capped=True) == FREE


@pytest.mark.parametrize("address", ["api.openai.com", "8.8.8.8:80", "[2606:4700::1111]:443", "user:x@api.example.com"])
def test_other_addresses_bill(address: str) -> None:
    assert not is_private(address.rpartition("@")[2])
    with pytest.raises(ConfigError):
        price_of("openai/nobody-knows", provider=f"openai@{address}", capped=True)


def test_an_unknown_price_is_an_error_where_caps_are_set_and_else_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="usd_per_million_tokens"):
        price_of("openai/never-heard-of", provider="openai", capped=True)
    with caplog.at_level(logging.WARNING, logger="infra.prices"):
        assert [price_of("openai/never-heard-of", provider="openai") for _ in range(3)] == [FREE] * 3
    assert [record.message for record in caplog.records] == [
        "model=openai/never-heard-of outcome=unpriced reason='no price is known, its calls count as free'"
    ]


def test_a_model_without_a_price_by_tokens_is_unknown() -> None:
    with pytest.raises(ConfigError):
        price_of("openai/whisper-1", provider="openai", capped=True)


@pytest.mark.parametrize(
    ("caps", "in_usd"),
    [({}, False), ({"ticket_agents": 3}, False), ({"day_usd": 0}, True), ({"role_usd": {"judge": 1}}, True)],
)
def test_caps_in_usd_need_prices(caps: dict[str, Any], in_usd: bool) -> None:
    assert BudgetsSection.model_validate(caps).in_usd == in_usd


def test_the_list_is_read_without_network_and_threads_and_only_when_it_is_needed() -> None:
    """The package can update itself; nothing of that may happen in a factory."""
    script = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name.startswith(('socket.', '_thread.start')) else None)\n"
        "from infra.prices import price_of\n"
        "price_of('embedded'); price_of('openai/gpt-5', None, 'openai@127.0.0.1:1')\n"
        "assert 'genai_prices' not in sys.modules\n"
        "assert price_of('openai/gpt-5', None, 'openai')[0] > 0\n"
        "sys.exit(f'it did {seen}' if seen else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def test_tokens_written_to_anthropics_cache_cost_a_quarter_more() -> None:
    """A6: 1,000 fresh, 2,000 written, 4,000 read and 100 answered tokens at 4, 0.4 and 20 USD a million."""
    usage = {"input_tokens": 1000, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 4000}
    answer = {
        "type": "message", "model": "m", "stop_reason": "end_turn", "content": [{"type": "text", "text": "hi"}],
        "usage": {**usage, "output_tokens": 100},
    }  # fmt: skip
    with ScriptedModel([on("hello", Fault(kind="status", status=200, body=answer))]) as model:
        client = AnthropicClient(name="m", base_url=model.url, usd_per_million_tokens=(4, 0.4, 20))
        asked = ModelRequest(messages=(Message(role="user", content="hello"),), max_tokens=100)
        used = (await client.complete(asked)).usage
    assert (used.prompt_tokens, used.cached_tokens, used.completion_tokens) == (7000, 4000, 100)
    assert used.cost_usd == pytest.approx((1000 * 4 + 2000 * 5 + 4000 * 0.4 + 100 * 20) / 1e6)
