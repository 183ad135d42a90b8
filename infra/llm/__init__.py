"""Talking to a language model: the nouns and the one protocol. One file per kind of endpoint.

Clients do not retry, do not fall back and do not sleep: errors are raised as `infra.errors` and the flow decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

Tier = Literal["small", "capable"]
"""`small`: no reliable tool calls and no reliable judgement (1.5B class). `capable`: both."""

FinishReason = Literal["stop", "length", "tool_calls"]


class Frozen(BaseModel):
    """A value that is handed on and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tool(Frozen):
    """A function the model may call. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ToolCall(Frozen):
    """`arguments` is the JSON text exactly as the model wrote it; it may be invalid."""

    id: str
    name: str
    arguments: str


class Message(Frozen):
    """One chat message. `tool_call_id` is set on role `tool` only, `tool_calls` on role `assistant` only."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    shared_characters: int = Field(default=0, ge=0)
    """So many characters at the beginning are the same in other requests: an endpoint that wants to be told caches them."""


class Usage(Frozen):
    """Tokens as the provider's own usage field says. `cached_tokens` is the part of `prompt_tokens` not re-read."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
            cost_usd=self.cost_usd + other.cost_usd,
        )


class ModelRequest(Frozen):
    """One question. `json_schema` asks for an answer that is a JSON object of that schema."""

    messages: tuple[Message, ...]
    max_tokens: int = Field(gt=0)
    temperature: float = 0.0
    seed: int = 0
    json_schema: dict[str, Any] | None = None
    tools: tuple[Tool, ...] = ()
    stop: tuple[str, ...] = ()


class Completion(Frozen):
    """One complete answer. `finish_reason` is never missing: a stream without one is `Unreachable`."""

    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    model: str = ""


class ModelClient(Protocol):
    """An endpoint with a model behind it."""

    name: str
    """Stable name for ledgers and cache keys, e.g. `qwen2.5-coder-1.5b-instruct-q4_k_m` or `claude-sonnet-5`."""
    tier: Tier
    context_tokens: int

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """Ask once. Streams; `on_text` gets each piece as it arrives.

        Raises RateLimited, AuthFailed, QuotaExhausted, CapacityUnavailable, Unreachable, ProviderFault,
        ConfigError (unknown model, bad request) or LimitReached (the prompt does not fit the context).
        """
        ...

    async def check(self) -> str:
        """Cheap health check (no tokens where the API allows). Returns one line for people; raises like `complete`."""
        ...
