"""One call to a model API: a POST, its answer as a stream of JSON objects, every failure as an `infra.errors` class."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import cache
from ipaddress import ip_address
from ssl import SSLContext
from typing import Any

import httpx

from infra.errors import ConfigError, FactoryError, ProviderFault, Unreachable
from infra.llm import Usage
from infra.llm.errors import Endpoint, ErrorBody, body_of, failure, parse_error

MAX_ANSWER_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10
CONNECT_SECONDS = 10.0
CHECK_SECONDS = 30.0
REFUSED_PARAMETER = re.compile(
    r"[`'\"]?(temperature|seed|stop|max_tokens)[`'\"]? (?:is|does|are) (?:not|deprecated|unsupported)"
)

Prices = tuple[float, float, float]
"""USD per million prompt, cached prompt and completion tokens."""


class Refused(Exception):
    """The endpoint rejects one named request parameter with a 400. `error` is what to raise if it cannot be left out."""

    def __init__(self, param: str, error: FactoryError) -> None:
        super().__init__(param)
        self.param, self.error = param, error


def checked_key(key: str | None) -> str:
    """The key without surrounding white space. Raises ConfigError when it cannot stand in a header."""
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError("the API key holds characters that no key has; set `model_key` again")
    return key


@asynccontextmanager
async def exchange(
    endpoint: Endpoint, headers: Mapping[str, str], payload: Mapping[str, Any], timeout_seconds: float, max_tokens: int
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The JSON objects that answer one POST. `timeout_seconds` bounds the silence, `max_tokens` the whole call.

    Raises the errors of `ModelClient.complete`, or Refused.
    """
    async with (
        _bounded(endpoint, longest_call_seconds(timeout_seconds, max_tokens)),
        _transport(endpoint, timeout_seconds) as http,
        aclosing(_objects(http, endpoint, headers, payload)) as objects,
    ):
        yield objects


async def check_models(endpoint: Endpoint, headers: Mapping[str, str], timeout_seconds: float) -> str:
    """GET the list of models, which costs no tokens. Returns one line for people; raises like `exchange`."""
    async with (
        _transport(endpoint, min(timeout_seconds, CHECK_SECONDS)) as http,
        http.stream("GET", endpoint.url, headers=headers) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise failure(endpoint, await _error_of(response), response.status_code, response.headers)
        if _content_type(response) != "application/json":
            raise _wrong_type(response, endpoint)
    return f"{endpoint} answers"


def longest_call_seconds(timeout_seconds: float, max_tokens: int) -> float:
    """Twice the longest silence (queue and prompt) and a second per token: slower is of no use."""
    return 2 * timeout_seconds + max_tokens


def count(value: object) -> int:
    """A number of tokens as an endpoint states it; 0 for anything that is none."""
    return value if isinstance(value, int) and value > 0 else 0


def priced(usage: Usage, prices: Prices) -> Usage:
    """The same usage with its cost."""
    fresh = usage.prompt_tokens - usage.cached_tokens
    cost = fresh * prices[0] + usage.cached_tokens * prices[1] + usage.completion_tokens * prices[2]
    return usage.model_copy(update={"cost_usd": cost / 1e6})


@asynccontextmanager
async def _transport(endpoint: Endpoint, timeout_seconds: float) -> AsyncIterator[httpx.AsyncClient]:
    """A client for one call (event loops come and go), whose failures are Unreachable, ProviderFault or ConfigError."""
    timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    try:
        async with httpx.AsyncClient(timeout=timeout, verify=tls(), trust_env=not is_loopback(endpoint.url)) as http:
            yield http
    except httpx.TimeoutException as error:
        kind = type(error).__name__
        raise Unreachable(
            f"{endpoint} was silent for {timeout_seconds:g} s ({kind}); is it up?",
            may_be_billed=not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout),
        ) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise ConfigError(f"{endpoint}: that is not an http(s) address; correct `model_url`") from None
    except httpx.DecodingError:
        raise ProviderFault(f"{endpoint} sent a body that cannot be decompressed") from None
    except httpx.TransportError as error:
        raise Unreachable(
            f"{endpoint}: {type(error).__name__} {endpoint.clean(str(error))!r}; is it up?",
            may_be_billed=not isinstance(error, httpx.ConnectError),
        ) from None


async def _objects(
    http: httpx.AsyncClient, endpoint: Endpoint, headers: Mapping[str, str], payload: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the JSON object of each event (or the one of a plain JSON answer), until the end or `[DONE]`.

    Raises what `failure` makes of a bad status or of an error object, Refused, and ProviderFault for anything else
    than the protocol.
    """
    async with http.stream("POST", endpoint.url, headers=headers, json=payload) as response:
        if response.status_code != httpx.codes.OK:
            raise await _refusal(response, endpoint)
        kind = _content_type(response)
        if kind not in ("text/event-stream", "application/json"):
            raise _wrong_type(response, endpoint)
        async for text in (
            _event_data(response, endpoint) if kind == "text/event-stream" else _whole(response, endpoint)
        ):
            yield _checked_object(text, endpoint)


def _checked_object(text: bytes, endpoint: Endpoint) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        shown = endpoint.clean(text.decode(errors="replace"), 100)
        raise ProviderFault(f"{endpoint} sent {shown!r} where JSON belongs; is `model_url` a model API?") from None
    if error := parse_error(value):
        raise failure(endpoint, error)
    if not isinstance(value, dict):
        raise ProviderFault(f"{endpoint} sent JSON that is no object; is `model_url` a model API?")
    return value


def _content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _wrong_type(response: httpx.Response, endpoint: Endpoint) -> ProviderFault:
    kind = endpoint.clean(_content_type(response), 60)
    return ProviderFault(f"{endpoint} answered with content type {kind!r}; is `model_url` a model API?")


async def _refusal(response: httpx.Response, endpoint: Endpoint) -> Exception:
    error = await _error_of(response)
    raised = failure(endpoint, error, response.status_code, response.headers)
    if response.status_code == httpx.codes.BAD_REQUEST and type(raised) is ConfigError:
        named = REFUSED_PARAMETER.search(error.message)
        if param := error.param or (named and named[1]):
            return Refused(param, raised)
    return raised


async def _error_of(response: httpx.Response) -> ErrorBody:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return body_of(body.decode(errors="replace"))


async def _whole(response: httpx.Response, endpoint: Endpoint) -> AsyncIterator[bytes]:
    yield b"".join([line + b"\n" async for line in _lines(response, endpoint)])


async def _event_data(response: httpx.Response, endpoint: Endpoint) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Comments and other fields carry nothing for us."""
    data: list[bytes] = []
    async for line in _lines(response, endpoint):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            if data == [b"[DONE]"]:
                return
            yield b"\n".join(data)
            data = []
    if data and data != [b"[DONE]"]:
        yield b"\n".join(data)


async def _lines(response: httpx.Response, endpoint: Endpoint) -> AsyncIterator[bytes]:
    """Lines by `\\n` only: httpx also splits at U+2028, which may stand inside a JSON string."""
    rest, total = b"", 0
    async for chunk in response.aiter_bytes():
        total += len(chunk)
        if total > MAX_ANSWER_BYTES:
            raise ProviderFault(f"{endpoint} sent more than {MAX_ANSWER_BYTES} bytes in one answer")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest.rstrip(b"\r")


@asynccontextmanager
async def _bounded(endpoint: Endpoint, seconds: float) -> AsyncIterator[None]:
    """End a call that stays alive but never finishes (keep-alive comments, one byte a minute) as Unreachable."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise Unreachable(f"{endpoint} did not finish within {seconds:g} s; is it stuck?", may_be_billed=True) from None


class Text:
    """The text of one answer as it grows. `on_text` gets what is new when `tell` is called, outside all parsing."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._told = 0

    def add(self, piece: str) -> None:
        """Raises TypeError for anything but text."""
        self._pieces.append("" + piece)

    def tell(self) -> None:
        fresh, self._told = "".join(self._pieces[self._told :]), len(self._pieces)
        if fresh and self._on_text:
            self._on_text(fresh)

    def __str__(self) -> str:
        return "".join(self._pieces)


@cache
def tls() -> SSLContext:
    """Made once: loading the certificates costs more than a local call."""
    return httpx.create_ssl_context()


def is_loopback(url: str) -> bool:
    """A proxy of the environment must not see calls to this machine."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
