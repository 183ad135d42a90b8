"""Both API clients against the scripted model behind a real port: good answers, and every way of failing."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from infra.errors import (
    AuthFailed,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    InfraError,
    InvalidOutput,
    LimitReached,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from infra.llm import Message, ModelRequest, Tool, ToolCall
from infra.llm.openai_api import OpenAIClient
from infra.llm.scripted import Answer, Fault, ScriptedModel, on

KEY = "sk-test-0123456789abcdef"
CONTRACT = Path(__file__).parents[4] / "shared" / "contracts" / "anthropic" / "openapi.yml.gz"
SCHEMA = {"type": "object", "properties": {"verdict": {"type": "string"}}, "required": ["verdict"]}
LOOK = Tool(name="look", description="Read a file.", parameters={"type": "object", "properties": {}})


def status(code: int, body: dict[str, Any] | str | None = None, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(kind="status", status=code, body=body, headers=named)


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


async def fail(connect: Any, ask: Any, fault: Fault, **options: Any) -> FactoryError:
    """Ask once and return the error."""
    with ScriptedModel([on("", fault)]) as model, pytest.raises(FactoryError) as raised:
        await connect(model.url, **options).complete(ask())
    assert model.calls == 1, "clients never retry"
    assert KEY not in str(raised.value)
    assert "'m1'" in str(raised.value), "the message names the model"
    return raised.value


async def test_an_answer_arrives_piece_by_piece_and_whole(connect: Any, ask: Any) -> None:
    pieces: list[str] = []
    text = "Grüße \u2028 and a long line of text"
    with ScriptedModel([on("hello", text)]) as model:
        answer = await connect(model.url).complete(ask(), pieces.append)
    assert answer.text == "".join(pieces) == text
    assert len(pieces) > 1
    assert (answer.finish_reason, answer.model) == ("stop", "m1")


async def test_usage_counts_the_shared_beginning_as_cached_and_prices_it(connect: Any, ask: Any) -> None:
    """OB3."""
    shared = "the long brief " * 40
    with ScriptedModel([on("", "twelve chars")]) as model:
        client = connect(model.url, usd_per_million_tokens=(10, 1, 100))
        first = (await client.complete(ask(shared + "plan"))).usage
        second = (await client.complete(ask(shared + "judge"))).usage
    assert (first.cached_tokens, first.calls, first.completion_tokens) == (0, 1, 3)
    assert 140 < second.cached_tokens < second.prompt_tokens
    fresh = second.prompt_tokens - second.cached_tokens
    assert second.cost_usd == pytest.approx((fresh * 10 + second.cached_tokens * 1 + 3 * 100) / 1e6)
    assert second.seconds > 0


async def test_an_answer_cut_by_max_tokens_says_length(connect: Any, ask: Any) -> None:
    with ScriptedModel([on("", "a" * 400)]) as model:
        answer = await connect(model.url).complete(ask(max_tokens=10))
    assert (answer.finish_reason, len(answer.text)) == ("length", 40)


async def test_a_stop_text_ends_the_answer(connect: Any, ask: Any) -> None:
    with ScriptedModel([on("", "kept END dropped")]) as model:
        answer = await connect(model.url).complete(ask(stop=("END",)))
    assert answer.text == "kept "


async def test_tool_calls_are_put_together_from_their_pieces(connect: Any, ask: Any) -> None:
    calls = (
        ToolCall(id="c1", name="look", arguments='{"path": "a/very/long/path/to/some/file.py"}'),
        ToolCall(id="c2", name="look", arguments='{"path": "other.py"}'),
    )
    with ScriptedModel([on("", Answer(text="Let me look.", tool_calls=calls))]) as model:
        answer = await connect(model.url).complete(ask(tools=(LOOK,)))
    assert answer.tool_calls == calls
    assert (answer.text, answer.finish_reason) == ("Let me look.", "tool_calls")
    assert "look" in json.dumps(model.requests[0].body["tools"])


async def test_tool_results_go_back_in_one_turn(connect: Any, protocol: str) -> None:
    calls = (ToolCall(id="c1", name="look", arguments="{}"), ToolCall(id="c2", name="look", arguments="{not json"))
    talk = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="go"),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="one", tool_call_id="c1"),
        Message(role="tool", content="two", tool_call_id="c2"),
    )
    with ScriptedModel([on("two", "done")]) as model:
        await connect(model.url).complete(ModelRequest(messages=talk, max_tokens=10))
    sent = model.requests[0].body
    if protocol == "openai":
        assert [m["role"] for m in sent["messages"]] == ["system", "user", "assistant", "tool", "tool"]
        assert sent["messages"][3]["tool_call_id"] == "c1"
        assert sent["messages"][2]["tool_calls"][1]["function"]["arguments"] == "{not json"
    else:
        assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "user"]
        assert [block["tool_use_id"] for block in sent["messages"][2]["content"]] == ["c1", "c2"]
        assert all(isinstance(block["input"], dict) for block in sent["messages"][1]["content"])


async def test_anthropic_caches_system_and_last_message(ask: Any) -> None:
    from infra.llm.anthropic_api import AnthropicClient

    talk = (Message(role="system", content="Be brief."), Message(role="user", content="go"))
    with ScriptedModel([on("go", "done")]) as model:
        client = AnthropicClient("m1", model.url, KEY)
        await client.complete(ModelRequest(messages=talk, max_tokens=10, temperature=1.5))
    sent, marker = model.requests[0].body, {"type": "ephemeral"}
    assert sent["system"][0]["cache_control"] == sent["messages"][-1]["content"][-1]["cache_control"] == marker
    assert sent["temperature"] == 1.0
    assert model.requests[0].key_header == "x-api-key"


async def test_anthropic_caches_what_a_message_shares_with_others_whatever_is_asked(ask: Any) -> None:
    """Tools, system and the shared part are the same bytes for every schema, with a breakpoint behind them, and the whole is
    a request of the published contract."""
    from infra.llm.anthropic_api import AnthropicClient

    with ScriptedModel([on("", "{}")]) as model:
        client = AnthropicClient("m1", model.url, KEY)
        for asked, schema in (("judge", SCHEMA), ("review", {"type": "object", "properties": {"summary": {}}})):
            talk = (
                Message(role="system", content="S"),
                Message(role="user", content=f"prefix{asked}", shared_characters=6),
            )
            await client.complete(ModelRequest(messages=talk, max_tokens=10, json_schema=schema))
    one, other = (request.body for request in model.requests)
    assert (one["tools"], one["tool_choice"], one["system"]) == (other["tools"], other["tool_choice"], other["system"])
    shared, own, schema_block = one["messages"][0]["content"]
    assert (
        shared
        == other["messages"][0]["content"][0]
        == {"type": "text", "text": "prefix", "cache_control": {"type": "ephemeral"}}
    )
    assert (own["text"], "verdict" in schema_block["text"]) == ("judge", True)
    assert schema_block["cache_control"] == {"type": "ephemeral"}
    assert json.dumps(one).count("cache_control") <= 4, "Anthropic takes four breakpoints"
    if not CONTRACT.exists():
        pytest.skip("the published contract lies beside the checkout, and it is not here")
    contract = Resource(yaml.safe_load(gzip.decompress(CONTRACT.read_bytes())), DRAFT202012)
    known = Registry().with_resource("urn:anthropic", contract)
    Draft202012Validator({"$ref": "urn:anthropic#/components/schemas/CreateMessageParams"}, registry=known).validate(
        one
    )


async def test_a_json_schema_is_sent_and_its_answer_comes_as_text(connect: Any, ask: Any) -> None:
    with ScriptedModel([on("", '{"verdict": "accept"}')]) as model:
        answer = await connect(model.url).complete(ask(json_schema=SCHEMA))
    assert json.loads(answer.text) == {"verdict": "accept"}
    assert (answer.finish_reason, answer.tool_calls) == ("stop", ())
    assert "verdict" in json.dumps(model.requests[0].body)


async def test_openai_sends_seed_temperature_and_the_extra_body(ask: Any) -> None:
    with ScriptedModel([on("", "x")]) as model:
        client = OpenAIClient("m1", model.openai_url, extra_body={"cache_prompt": True})
        await client.complete(ask(seed=7, temperature=0.6))
        await OpenAIClient("m1", model.openai_url).complete(ask())
    first, second = (request.body for request in model.requests)
    assert (first["seed"], first["temperature"], first["cache_prompt"]) == (7, 0.6, True)
    assert "cache_prompt" not in second
    assert model.requests[0].key_header is None


async def test_a_parameter_that_the_model_does_not_take_is_left_out_and_remembered(ask: Any) -> None:
    limit = error("Unsupported parameter: 'max_tokens' is not supported with this model.", param="max_tokens")
    warm = error("Unsupported value: 'temperature' does not support 0.0 with this model.", param="temperature")
    with ScriptedModel([on("", status(400, limit), status(400, warm), "fine")]) as model:
        client = OpenAIClient("m1", model.openai_url)
        assert (await client.complete(ask())).text == "fine"
        await client.complete(ask())
    assert model.calls == 4
    last = model.requests[-1].body
    assert "temperature" not in last
    assert "max_tokens" not in last
    assert last["max_completion_tokens"] == 100


async def test_a_parameter_that_stays_refused_is_a_config_error(connect: Any, ask: Any) -> None:
    body = error("temperature is deprecated for this model", param="temperature")
    with ScriptedModel([on("", status(400, body))]) as model, pytest.raises(ConfigError):
        await connect(model.url).complete(ask())
    assert model.calls == 2


async def test_check_asks_for_the_models_and_costs_no_tokens(connect: Any) -> None:
    with ScriptedModel() as model:
        assert model.url in await connect(model.url).check()
    assert model.calls == 0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (status(401), AuthFailed),
        (status(401, {"error": "Unauthorized"}), AuthFailed),
        (status(401, "<html>nope</html>"), AuthFailed),
        (status(403), AuthFailed),
        (status(403, error("Project p does not have access to model m1", code="model_not_found")), UnknownModel),
        (status(402, "pay"), QuotaExhausted),
        (status(429, error("You exceeded your current quota", code="insufficient_quota")), QuotaExhausted),
        (status(429, error("x", code="credit_balance_exhausted")), QuotaExhausted),
        (status(429, error("x", code="project_spend_limit_exceeded")), QuotaExhausted),
        (
            status(429, error("x", type="rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})),
            QuotaExhausted,
        ),
        (
            status(400, error("Your credit balance is too low to access the API", type="invalid_request_error")),
            QuotaExhausted,
        ),
        (status(403, error("x", type="billing_error")), QuotaExhausted),
        (status(429), RateLimited),
        (status(429, {"error": {"message": "slow", "code": 429, "metadata": {"raw": "x"}}}), RateLimited),
        (
            status(429, {"error": {"status": "RESOURCE_EXHAUSTED", "message": "check your plan and billing"}}),
            RateLimited,
        ),
        (status(503), CapacityUnavailable),
        (
            status(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
            CapacityUnavailable,
        ),
        (status(529), CapacityUnavailable),
        (status(500), Unreachable),
        (status(502, "<html>bad gateway</html>"), Unreachable),
        (status(504), Unreachable),
        (status(408), Unreachable),
        (status(404), UnknownModel),
        (status(404, {"object": "error", "message": "The model `m1` does not exist.", "code": 404}), UnknownModel),
        (status(400, error("bad field", type="invalid_request_error")), ConfigError),
        (status(422, {"detail": "nope"}), ConfigError),
        (status(307, "", location="http://elsewhere.invalid/v1"), ConfigError),
        (status(413), LimitReached),
        (status(400, error("too long", code="context_length_exceeded")), LimitReached),
        (status(400, error("prompt is too long: 210000 tokens > 200000 maximum")), LimitReached),
        (
            status(400, error("the request exceeds the available context size", type="exceed_context_size_error")),
            LimitReached,
        ),
        (status(400, error("This model's maximum context length is 8192 tokens")), LimitReached),
        (status(200, error("Rate limit exceeded", code=429)), RateLimited),
        (status(200, error("boom", code=502)), Unreachable),
        (status(200, {"object": "error", "message": "boom", "type": "InternalServerError"}), Unreachable),
        (status(200, error("strange", type="never_heard_of")), ProviderFault),
        (status(200, "[1, 2]", content_type="application/json"), ProviderFault),
        (status(200, "", content_type="application/json"), ProviderFault),
        (Fault(kind="garbage"), ProviderFault),
        (Fault(kind="html"), ProviderFault),
        (status(200, "\x00\x01", content_type="application/octet-stream"), ProviderFault),
        (status(200, "xx", content_type="text/event-stream", content_encoding="gzip"), ProviderFault),
        (
            status(
                200, 'data: {"type":"message_start"}\n\ndata: {"choices":[3]}\n\n', content_type="text/event-stream"
            ),
            ProviderFault,
        ),
        (Fault(kind="cut"), Unreachable),
        (Fault(kind="reset"), Unreachable),
        (status(200, "", content_type="text/event-stream"), Unreachable),
        (Fault(kind="error_event"), CapacityUnavailable),
        (Fault(kind="error_event", body=error("limit", type="rate_limit_error")), RateLimited),
        (Fault(kind="error_event", body=error("The server had an error", type="server_error")), Unreachable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else f"{value.kind}-{value.status}",
)
async def test_each_failure_says_the_next_decision(
    connect: Any, ask: Any, fault: Fault, expected: type[FactoryError]
) -> None:
    """RB8: all but LimitReached leave the attempts alone."""
    raised = await fail(connect, ask, fault)
    assert type(raised) is expected, raised
    if fault.kind == "cut":
        assert "was cut after" in str(raised)
    assert isinstance(raised, InfraError | ConfigError | LimitReached)


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "99"}, "", 1.5),
        ({"retry-after": "20"}, "", 20),
        ({"retry-after": format_datetime(in_seconds(-90), usegmt=True)}, "", 0),
        ({"x-ratelimit-reset-requests": "1m26.4s", "x-ratelimit-reset-tokens": "4ms"}, "", 86.4),
        (
            {"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "9"}
            | {"x-ratelimit-reset-tokens": "8s", "x-ratelimit-remaining-tokens": "0"},
            "",
            8,
        ),
        ({}, "Rate limit reached for m1 (TPM). Please try again in 8s. Visit", 8),
        ({}, "Rate limit reached. Please try again in 1m26.4s.", 86.4),
        ({}, "Rate limit of 50 per 86400s exceeded. Please wait 5631 seconds", 5631),
        ({}, "try again in 2 hours", 7200),
    ],
)
async def test_a_rate_limit_names_its_end(
    connect: Any, ask: Any, headers: dict[str, str], message: str, seconds: float
) -> None:
    """RB8, TR4."""
    fault = Fault(kind="status", status=429, headers=headers, body=error(message or "slow", type="rate_limit_error"))
    raised = await fail(connect, ask, fault)
    assert isinstance(raised, RateLimited)
    assert raised.reset_at is not None
    assert abs((raised.reset_at - in_seconds(seconds)).total_seconds()) < 3


@pytest.mark.parametrize("name", ["retry-after", "anthropic-ratelimit-input-tokens-reset"])
async def test_a_rate_limit_may_name_its_end_as_a_date(connect: Any, ask: Any, name: str) -> None:
    end = in_seconds(90)
    text = format_datetime(end, usegmt=True) if name == "retry-after" else end.strftime("%Y-%m-%dT%H:%M:%SZ")
    raised = await fail(connect, ask, Fault(kind="status", status=429, headers={name: text}))
    assert isinstance(raised, RateLimited)
    assert raised.reset_at is not None
    assert abs((raised.reset_at - end).total_seconds()) < 3


async def test_a_usage_window_is_waited_for_even_under_status_400(connect: Any, ask: Any) -> None:
    text = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
    raised = await fail(connect, ask, status(400, error(text, type="invalid_request_error")))
    assert isinstance(raised, RateLimited)
    assert raised.reset_at == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value", ["soon", "-5", "1e999", "99999999999999", "Wed, 99 Foo 2026", "Fri, 31 Dec 9999 23:59:59 -1200"]
)
async def test_a_nonsense_wait_is_no_wait(connect: Any, ask: Any, value: str) -> None:
    raised = await fail(connect, ask, status(429, retry_after=value))
    assert isinstance(raised, RateLimited)
    assert raised.reset_at is None


async def test_a_silent_endpoint_is_unreachable(connect: Any, ask: Any) -> None:
    raised = await fail(connect, ask, Fault(kind="silent", seconds=5), timeout_seconds=0.3)
    assert isinstance(raised, Unreachable)


async def test_keep_alives_without_an_end_are_unreachable(connect: Any, ask: Any) -> None:
    with ScriptedModel([on("", Fault(kind="drip", seconds=20))]) as model:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="did not finish"):
            await connect(model.url, timeout_seconds=0.3).complete(ask(max_tokens=1))
        assert time.monotonic() - began < 5


async def test_nobody_listening_is_unreachable(connect: Any, ask: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="is it up"):
            await connect(f"http://127.0.0.1:{unused.getsockname()[1]}").complete(ask())


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:80", "nonsense"])
async def test_an_address_that_is_none_is_a_config_error(connect: Any, ask: Any, url: str) -> None:
    with pytest.raises(ConfigError, match="model_url"):
        await connect(url).complete(ask())


async def test_a_key_that_is_echoed_is_blotted_out(connect: Any, ask: Any) -> None:
    raised = await fail(connect, ask, status(401, error(f"Incorrect API key provided: {KEY}. Also sk-te****cdef")))
    assert "***" in str(raised)
    assert "cdef" not in str(raised)


def test_a_key_with_odd_characters_is_refused_without_showing_it(connect: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        OpenAIClient("m1", "http://127.0.0.1", api_key="sk-geheim\u00e9")
    assert "geheim" not in str(raised.value)


async def test_a_filtered_answer_is_invalid_output(ask: Any) -> None:
    done = 'data: {"choices":[{"delta":{},"finish_reason":"content_filter"}]}\n\n'
    raised = await fail(
        lambda url, **options: OpenAIClient("m1", f"{url}/v1", KEY, **options),
        ask,
        status(200, done, content_type="text/event-stream"),
    )
    assert isinstance(raised, InvalidOutput)


async def test_an_endpoint_that_does_not_stream_is_understood(ask: Any) -> None:
    whole = {
        "choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5},
    }
    with ScriptedModel([on("", status(200, whole))]) as model:
        answer = await OpenAIClient("m1", model.openai_url).complete(ask())
    assert (answer.text, answer.usage.prompt_tokens) == ("all at once", 5)


async def test_llama_timings_stand_in_for_a_missing_usage(ask: Any) -> None:
    timings = {"cache_n": 400, "prompt_n": 12, "predicted_n": 3}
    whole = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "timings": timings}
    with ScriptedModel([on("", status(200, whole))]) as model:
        usage = (await OpenAIClient("m1", model.openai_url).complete(ask())).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (412, 400, 3)


def mutations(value: Any) -> Iterator[Any]:
    """The value with each part in turn replaced by something of a wrong kind."""
    yield from (None, 7, "odd", [], {}, [3], {"a": 1}, True, -1)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, part in parts:
        for other in mutations(part):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[place] = other
            yield copy


CHUNK = {
    "model": "m1",
    "choices": [
        {
            "delta": {
                "content": "x",
                "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
    "timings": {"cache_n": 0},
}
MESSAGE = {
    "type": "message",
    "model": "m1",
    "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 0},
}
DELTAS = [
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
]


async def test_no_answer_however_odd_escapes_the_error_tree(connect: Any, ask: Any, protocol: str) -> None:
    """A hostile or broken endpoint can only fail as the protocol promises."""
    if protocol == "openai":
        answers = [[chunk] for chunk in mutations(CHUNK)]
    else:
        answers = [[message] for message in mutations(MESSAGE)] + list(mutations(DELTAS))
    bodies = [
        "".join(f"data: {json.dumps(event)}\n\n" for event in events) for events in answers if isinstance(events, list)
    ]
    bodies.append("data: " + "[" * 100_000 + "\n\n")
    faults = [status(200, body, content_type="text/event-stream") for body in bodies]
    with ScriptedModel([on("", *faults)]) as model:
        client = connect(model.url)
        for _ in bodies:
            with suppress(InfraError, ConfigError, LimitReached, InvalidOutput):
                await client.complete(ask())
    assert model.calls == len(bodies)


async def test_an_error_of_the_listener_is_not_blamed_on_the_provider(connect: Any, ask: Any) -> None:
    def listener(text: str) -> None:
        raise TypeError("my own mistake")

    with ScriptedModel([on("", "hello")]) as model, pytest.raises(TypeError, match="my own mistake"):
        await connect(model.url).complete(ask(), listener)
