"""Chat completions of OpenAI and of everything that speaks its protocol (vLLM, llama.cpp, OpenRouter, gateways)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from infra.errors import InvalidOutput, ProviderFault, Unreachable
from infra.llm import Completion, FinishReason, Message, ModelRequest, Tier, Tool, ToolCall, Usage
from infra.llm.calls import Prices, Refused, Text, check_models, checked_key, count, exchange, priced
from infra.llm.errors import Endpoint

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
OPTIONAL = {"temperature": None, "seed": None, "stop": None, "max_tokens": "max_completion_tokens"}
"""Parameters that some models refuse, and their replacement: reasoning models take no temperature and another limit."""


class OpenAIClient:
    """`ModelClient` of one model behind one OpenAI-compatible base URL (with `/v1`)."""

    tier: Tier

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        tier: Tier = "capable",
        context_tokens: int = 128_000,
        timeout_seconds: float = 300,
        usd_per_million_tokens: Prices = (0.0, 0.0, 0.0),
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        """`timeout_seconds` is the longest silence; prices are of prompt, cached prompt and completion tokens.

        `extra_body` goes into every request, e.g. llama.cpp's `cache_prompt`. Raises ConfigError for an impossible key.
        """
        self.name, self.tier, self.context_tokens = name, tier, context_tokens
        self._base_url, self._key = base_url.rstrip("/"), checked_key(api_key)
        self._timeout_seconds, self._prices = timeout_seconds, usd_per_million_tokens
        self._extra_body = extra_body or {}
        self._refused: set[str] = set()

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As the protocol says; InvalidOutput when the provider's content filter stopped the answer."""
        while True:
            try:
                return await self._ask(request, on_text)
            except Refused as refusal:
                if refusal.param not in OPTIONAL or refusal.param in self._refused:
                    raise refusal.error from None
                self._refused.add(refusal.param)

    async def check(self) -> str:
        """List the models (no tokens)."""
        return await check_models(self._endpoint("/models"), self._headers(), self._timeout_seconds)

    async def _ask(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> Completion:
        endpoint, answer, began = self._endpoint("/chat/completions"), _Answer(on_text), time.monotonic()
        payload = self._payload(request)
        async with exchange(endpoint, self._headers(), payload, self._timeout_seconds, request.max_tokens) as objects:
            async for value in objects:
                answer.add(value, endpoint)
        return answer.completion(endpoint, self._prices, time.monotonic() - began)

    def _endpoint(self, path: str) -> Endpoint:
        return Endpoint(self.name, self._base_url + path, self._key)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def _payload(self, request: ModelRequest) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.name,
            "messages": [_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra_body,
        }
        if request.stop:
            payload["stop"] = list(request.stop)
        if request.tools:
            payload["tools"] = [_tool(tool) for tool in request.tools]
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": request.json_schema}
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        return _without(payload, self._refused)


def _without(payload: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    kept = {name: value for name, value in payload.items() if name not in refused}
    for name in refused & payload.keys():
        if replacement := OPTIONAL[name]:
            kept[replacement] = payload[name]
    return kept


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


class _Answer:
    """The parts of one streamed answer, put together."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._text = Text(on_text)
        self._calls: dict[int, dict[str, str]] = {}
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self._finish = ""
        self._model = ""

    def add(self, chunk: dict[str, Any], endpoint: Endpoint) -> None:
        """Take in one chunk, or a whole answer of an endpoint that does not stream."""
        try:
            self._model = str(chunk.get("model") or self._model)
            self._usage |= chunk.get("usage") or {}
            self._timings |= chunk.get("timings") or {}
            for choice in (chunk.get("choices") or [])[:1]:
                self._add_delta(choice.get("delta") or choice.get("message") or {})
                self._finish = str(choice.get("finish_reason") or self._finish or "")
        except (AttributeError, TypeError, ValueError, KeyError):
            raise ProviderFault(f"{endpoint} sent a chunk that is no chat completion: {str(chunk)[:200]!r}") from None
        self._text.tell()

    def _add_delta(self, delta: dict[str, Any]) -> None:
        if text := delta.get("content"):
            self._text.add(text)
        for place, call in enumerate(delta.get("tool_calls") or []):
            known = self._calls.setdefault(int(call.get("index", place)), {"id": "", "name": "", "arguments": ""})
            function = call.get("function") or {}
            known["id"] = str(call.get("id") or known["id"])
            known["name"] += function.get("name") or ""
            known["arguments"] += function.get("arguments") or ""

    def completion(self, endpoint: Endpoint, prices: Prices, seconds: float) -> Completion:
        """Raises Unreachable when the stream ended without a finish reason."""
        if not self._finish:
            raise Unreachable(
                f"{endpoint}: the stream was cut after {len(str(self._text))} characters", may_be_billed=True
            )
        if self._finish == "content_filter":
            raise InvalidOutput(f"{endpoint}: the provider's content filter stopped the answer; reword the request")
        if self._finish not in FINISH_REASONS:
            raise ProviderFault(f"{endpoint} ended with the unknown finish reason {self._finish!r:.60}")
        calls = tuple(ToolCall(**self._calls[index]) for index in sorted(self._calls))
        return Completion(
            text=str(self._text),
            finish_reason="tool_calls" if calls and self._finish == "stop" else FINISH_REASONS[self._finish],
            tool_calls=calls,
            usage=priced(self._used(seconds), prices),
            model=self._model,
        )

    def _used(self, seconds: float) -> Usage:
        """The provider's figures; llama.cpp's `timings` stand in for a usage that is missing."""
        details = self._usage.get("prompt_tokens_details")
        cached = count(details.get("cached_tokens") if isinstance(details, dict) else self._timings.get("cache_n"))
        prompt = count(self._usage.get("prompt_tokens")) or cached + count(self._timings.get("prompt_n"))
        return Usage(
            prompt_tokens=prompt,
            cached_tokens=min(cached, prompt),
            completion_tokens=count(self._usage.get("completion_tokens", self._timings.get("predicted_n"))),
            calls=1,
            seconds=seconds,
        )
