"""Anthropic's Messages API: system prompt apart, tools, prompt caching, and JSON answers through a forced tool."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from infra.errors import InvalidOutput, ProviderFault, Unreachable
from infra.llm import Completion, FinishReason, Message, ModelRequest, Tier, Tool, ToolCall, Usage
from infra.llm.calls import Prices, Refused, Text, check_models, checked_key, count, exchange, priced
from infra.llm.errors import Endpoint

API_VERSION = "2023-06-01"
ANSWER_TOOL = "answer"
"""Name of the tool that a request with `json_schema` forces the model to call. Its own schema is always the same, because
tools stand before everything else in the cached prefix; the schema that is wanted is the last thing said."""
FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
CACHED = {"cache_control": {"type": "ephemeral"}}
CACHE_WRITE_PRICE = 1.25
"""Price of a token that is written to the five-minute cache, in prices of a prompt token (Anthropic's price list)."""


class AnthropicClient:
    """`ModelClient` of one model behind Anthropic's API or a gateway that speaks it."""

    tier: Tier

    def __init__(
        self,
        name: str,
        base_url: str = "https://api.anthropic.com",
        api_key: str | None = None,
        tier: Tier = "capable",
        context_tokens: int = 128_000,
        timeout_seconds: float = 300,
        usd_per_million_tokens: Prices = (0.0, 0.0, 0.0),
    ) -> None:
        """`base_url` with or without `/v1`; `timeout_seconds` is the longest silence.

        Tokens written to the cache cost `CACHE_WRITE_PRICE`. Raises ConfigError for an impossible key.
        """
        self.name, self.tier, self.context_tokens = name, tier, context_tokens
        self._base_url, self._key = base_url.rstrip("/").removesuffix("/v1"), checked_key(api_key)
        self._timeout_seconds, self._prices = timeout_seconds, usd_per_million_tokens
        self._takes_temperature = True

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As the protocol says (`seed` is not in this API); InvalidOutput when the model refuses to answer."""
        while True:
            try:
                return await self._ask(request, on_text)
            except Refused as refusal:
                if refusal.param != "temperature" or not self._takes_temperature:
                    raise refusal.error from None
                self._takes_temperature = False

    async def check(self) -> str:
        """List the models (no tokens)."""
        return await check_models(self._endpoint("/v1/models"), self._headers(), self._timeout_seconds)

    async def _ask(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> Completion:
        endpoint, answer, began = self._endpoint("/v1/messages"), _Answer(on_text), time.monotonic()
        payload = self._payload(request)
        async with exchange(endpoint, self._headers(), payload, self._timeout_seconds, request.max_tokens) as events:
            async for event in events:
                answer.add(event, endpoint)
        return answer.completion(endpoint, self._prices, time.monotonic() - began)

    def _endpoint(self, path: str) -> Endpoint:
        return Endpoint(self.name, self._base_url + path, self._key)

    def _headers(self) -> dict[str, str]:
        key = {"x-api-key": self._key} if self._key else {}
        return {"anthropic-version": API_VERSION, **key}

    def _payload(self, request: ModelRequest) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.name,
            "messages": _messages(_with_schema(request)),
            "max_tokens": request.max_tokens,
            "stream": True,
            **_tool_fields(request),
        }
        if system := "\n\n".join(m.content for m in request.messages if m.role == "system" and m.content):
            payload["system"] = [{"type": "text", "text": system, **CACHED}]
        if request.stop:
            payload["stop_sequences"] = list(request.stop)
        if self._takes_temperature:
            payload["temperature"] = min(request.temperature, 1.0)
        return payload


def _tool_fields(request: ModelRequest) -> dict[str, Any]:
    tools = [_tool(tool) for tool in request.tools]
    if request.json_schema is None:
        return {"tools": tools} if tools else {}
    tools.append(_tool(Tool(name=ANSWER_TOOL, description="Give the answer.", parameters={"type": "object"})))
    return {"tools": tools, "tool_choice": {"type": "tool", "name": ANSWER_TOOL}}


def _tool(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _with_schema(request: ModelRequest) -> tuple[Message, ...]:
    if request.json_schema is None:
        return request.messages
    wanted = f"The answer is one object of this schema: {json.dumps(request.json_schema)}"
    return (*request.messages, Message(role="user", content=wanted))


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Turns of user and assistant in alternation: the API wants all results of one round of tools in one turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message)
    turns = [turn for turn in turns if turn["content"]]
    if turns:
        turns[-1]["content"][-1] |= CACHED
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}]
    shared, own = message.content[: message.shared_characters], message.content[message.shared_characters :]
    text = [{"type": "text", "text": shared, **CACHED}] if shared.strip() else []
    text += [{"type": "text", "text": own}] if own.strip() else []
    return [*text, *(_tool_use(call) for call in message.tool_calls)]


def _tool_use(call: ToolCall) -> dict[str, Any]:
    """Arguments that are no JSON object go back as text: the API takes objects only."""
    try:
        value = json.loads(call.arguments)
    except ValueError:
        value = None
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": value if isinstance(value, dict) else {"not_json": call.arguments},
    }


class _Answer:
    """The parts of one streamed answer, put together."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._text = Text(on_text)
        self._calls: dict[int, dict[str, str]] = {}
        self._usage: dict[str, int] = {}
        self._stop = ""
        self._model = ""

    def add(self, event: dict[str, Any], endpoint: Endpoint) -> None:
        """Take in one event, or a whole answer of a gateway that does not stream."""
        try:
            self._add(event)
        except (AttributeError, TypeError, ValueError, KeyError):
            raise ProviderFault(f"{endpoint} sent an event that is no message: {str(event)[:200]!r}") from None
        self._text.tell()

    def _add(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._add_message(event["message"])
            case "content_block_start":
                self._open_block(event["index"], event["content_block"])
            case "content_block_delta":
                self._add_delta(event["index"], event["delta"])
            case "message_delta":
                self._stop = str(event["delta"].get("stop_reason") or self._stop)
                self._add_usage(event.get("usage"))
            case "message":
                self._add_message(event)

    def _add_message(self, message: dict[str, Any]) -> None:
        self._model = str(message.get("model") or "")
        self._stop = str(message.get("stop_reason") or "")
        self._add_usage(message.get("usage"))
        for index, block in enumerate(message.get("content") or []):
            self._open_block(index, block)

    def _add_usage(self, usage: dict[str, Any] | None) -> None:
        """The counts are cumulative: a later one replaces an earlier one."""
        self._usage |= {name: count(tokens) for name, tokens in (usage or {}).items()}

    def _open_block(self, index: int, block: dict[str, Any]) -> None:
        if block["type"] == "text":
            self._text.add(block.get("text") or "")
        if block["type"] == "tool_use":
            arguments = json.dumps(block["input"]) if block.get("input") else ""
            self._calls[int(index)] = {"id": str(block["id"]), "name": str(block["name"]), "arguments": ""}
            self._add_arguments(index, arguments)

    def _add_delta(self, index: int, delta: dict[str, Any]) -> None:
        if delta["type"] == "text_delta":
            self._text.add(delta["text"])
        if delta["type"] == "input_json_delta":
            self._add_arguments(index, delta["partial_json"])

    def _add_arguments(self, index: int, piece: str) -> None:
        call = self._calls[index]
        if call["name"] == ANSWER_TOOL:
            self._text.add(piece)
        else:
            call["arguments"] += piece

    def completion(self, endpoint: Endpoint, prices: Prices, seconds: float) -> Completion:
        """Raises Unreachable when the stream ended without a stop reason."""
        if not self._stop:
            raise Unreachable(
                f"{endpoint}: the stream was cut after {len(str(self._text))} characters", may_be_billed=True
            )
        if self._stop == "refusal":
            raise InvalidOutput(f"{endpoint}: the model refused to answer; reword the request")
        if self._stop not in FINISH_REASONS:
            raise ProviderFault(f"{endpoint} ended with the unknown stop reason {self._stop!r:.60}")
        calls = tuple(ToolCall(**call) for _, call in sorted(self._calls.items()) if call["name"] != ANSWER_TOOL)
        finish = FINISH_REASONS[self._stop]
        return Completion(
            text=str(self._text),
            finish_reason="stop" if finish == "tool_calls" and not calls else finish,
            tool_calls=calls,
            usage=self._priced(self._used(seconds), prices),
            model=self._model,
        )

    def _priced(self, used: Usage, prices: Prices) -> Usage:
        """With its cost. Written tokens are prompt tokens, and their surcharge comes on top."""
        surcharge = self._usage.get("cache_creation_input_tokens", 0) * prices[0] * (CACHE_WRITE_PRICE - 1) / 1e6
        plain = priced(used, prices)
        return plain.model_copy(update={"cost_usd": plain.cost_usd + surcharge})

    def _used(self, seconds: float) -> Usage:
        """`input_tokens` leaves out what was read from and written to the cache."""
        cached = self._usage.get("cache_read_input_tokens", 0)
        written = self._usage.get("cache_creation_input_tokens", 0)
        return Usage(
            prompt_tokens=self._usage.get("input_tokens", 0) + cached + written,
            cached_tokens=cached,
            completion_tokens=self._usage.get("output_tokens", 0),
            calls=1,
            seconds=seconds,
        )
