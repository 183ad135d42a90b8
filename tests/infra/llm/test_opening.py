"""Settings to clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.llm.anthropic_api import AnthropicClient
from infra.llm.openai_api import OpenAIClient
from infra.llm.opening import open_model, server_slots
from infra.llm.scripted import ScriptedModel, on
from infra.settings import Settings


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DARKFACTORY_MODEL_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("model", ["gpt", "openai/", "anthropic", "embedded/x", "", "bedrock/claude"])
def test_an_unknown_model_lists_the_forms(model: str) -> None:
    with pytest.raises(ConfigError, match=r"'embedded', 'openai/MODEL'"):
        open_model(Settings(model=model))


@pytest.mark.parametrize(
    ("model", "variable"), [("openai/m1", "OPENAI_API_KEY"), ("anthropic/m1", "ANTHROPIC_API_KEY")]
)
def test_a_vendor_needs_a_key_and_an_empty_one_is_none(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CF4."""
    monkeypatch.setenv(variable, " ")
    with pytest.raises(ConfigError, match=variable):
        open_model(Settings(model=model))
    monkeypatch.setenv(variable, "sk-1")
    client = open_model(Settings(model=model))
    assert (client.name, client.tier, client.context_tokens) == ("m1", "capable", 128_000)


async def test_an_endpoint_of_ones_own_needs_no_key(ask: Any) -> None:
    with ScriptedModel([on("", "hello")]) as model:
        chat = open_model(Settings(model="openai/org/m1", model_url=model.openai_url, model_tier="small"))
        messages = open_model(Settings(model="anthropic/m1", model_url=model.openai_url))
        assert (await chat.complete(ask())).text == (await messages.complete(ask())).text == "hello"
    assert isinstance(chat, OpenAIClient)
    assert isinstance(messages, AnthropicClient)
    assert (chat.name, chat.tier, model.requests[0].key_header) == ("org/m1", "small", None)


async def test_the_key_of_the_settings_is_sent(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKFACTORY_MODEL_KEY", "sk-set")
    with ScriptedModel([on("", "hello")]) as model:
        await open_model(Settings(model="openai/m1", model_url=model.openai_url)).complete(ask())
    assert model.requests[0].key_header == "authorization"


def test_other_weights_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="weights_path"):
        open_model(Settings(home=tmp_path, weights_path=tmp_path / "w.gguf"))


@pytest.mark.parametrize(("calls", "cores", "slots"), [(2, 2, 1), (2, 8, 2), (1, 64, 1), (8, 16, 4), (2, 1, 1)])
def test_small_machines_answer_one_call_at_a_time(calls: int, cores: int, slots: int) -> None:
    assert server_slots(calls, cores) == slots
