"""One client of each protocol, pointed at a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.llm import Message, ModelClient, ModelRequest
from infra.llm.anthropic_api import AnthropicClient
from infra.llm.openai_api import OpenAIClient

KEY = "sk-test-0123456789abcdef"

Connect = Callable[..., ModelClient]
Ask = Callable[..., ModelRequest]


@pytest.fixture(params=["openai", "anthropic"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(protocol: str) -> Connect:
    """Make a client of the protocol for the base URL of a scripted model (without `/v1`)."""

    def make(url: str, **options: Any) -> ModelClient:
        if protocol == "openai":
            return OpenAIClient(name="m1", base_url=f"{url}/v1", api_key=KEY, **options)
        return AnthropicClient(name="m1", base_url=url, api_key=KEY, **options)

    return make


@pytest.fixture
def ask() -> Ask:
    """Make a request with one user message."""

    def make(text: str = "hello", **options: Any) -> ModelRequest:
        return ModelRequest(messages=(Message(role="user", content=text),), **{"max_tokens": 100, **options})

    return make
