"""What a failed answer of a model API means for the caller: status, headers and body become one `infra.errors` class.

The rows come from the vendors' documents and recorded answers (OpenAI and compatible, OpenRouter, vLLM, llama.cpp,
Gemini's compatible endpoint, Anthropic). Structured fields are asked first, words last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from infra.errors import (
    AuthFailed,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    LimitReached,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    UnknownModel,
    Unreachable,
)
from infra.reset_times import parse_reset

MONEY_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_error",
        "billing_not_active",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "enforced_spend_limit_reached",
    }
)
MONEY_WORDS = re.compile(
    r"credit balance is too low|out of credits|insufficient (credits|balance)|monthly spend limit|billing hard limit"
    r"|check your plan and billing",
    re.IGNORECASE,
)
CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "request_too_large"})
CONTEXT_WORDS = re.compile(
    r"prompt is too long|maximum context length|longer than the maximum model length|context ?window"
    r"|exceeds? the (available )?context|input is too long",
    re.IGNORECASE,
)
MODEL_CODES = frozenset({"model_not_found", "not_found_error", "notfounderror", "deploymentnotfound"})
MODEL_WORDS = re.compile(r"the model .{0,100} does not exist|does not have access to (the )?model", re.IGNORECASE)
WINDOW_WORDS = re.compile(r"you have reached your specified api usage limits", re.IGNORECASE)
AUTH_CODES = frozenset({"authentication_error", "permission_error", "invalid_api_key", "unauthorized"})
RATE_CODES = frozenset(
    {"rate_limit_error", "rate_limit_exceeded", "ratelimitreached", "resource_exhausted", "slow_down"}
    | {"usage_limit_reached"}
)
BUSY_CODES = frozenset({"overloaded_error", "overloaded", "unavailable_error", "server_overloaded", "unavailable"})
BUSY_WORDS = re.compile(r"overloaded|at capacity|high demand|loading model", re.IGNORECASE)
BROKEN_CODES = frozenset({"api_error", "server_error", "timeout_error", "internal_server_error", "internalservererror"})
KEY_SHAPE = re.compile(r"\b(sk|key|gsk|xai|hf)[-_][\w*-]{6,}")
LONGEST_WAIT = timedelta(days=40)
"""A reset further away than this is a misread number, not a promise."""


@dataclass(frozen=True)
class Endpoint:
    """Who was asked. Goes into every message; `secret` is blotted out of them."""

    model: str
    url: str
    secret: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"model {self.model!r} at {self.url!r}"

    def clean(self, text: str, length: int = 300) -> str:
        """Foreign text on one line, short, and without the key."""
        text = text.replace(self.secret, "***") if self.secret else text
        return KEY_SHAPE.sub("***", " ".join(text.split()))[:length]


@dataclass(frozen=True)
class ErrorBody:
    """The error that a body states. `codes` are its lower-case type, code and status words."""

    message: str
    codes: frozenset[str] = frozenset()
    status: int | None = None
    param: str | None = None
    resets: datetime | None = None


def parse_error(value: object) -> ErrorBody | None:
    """Find the error object in a decoded body or stream event; None when there is none.

    Shapes: `{"error": {…}}`, `{"error": "text"}`, `{"object": "error", …}`, `{"type": "error", "error": {…}}`, `[{…}]`.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    error = value if value.get("object") == "error" else value.get("error")
    if not error:
        return None
    if not isinstance(error, dict):
        return ErrorBody(message=str(error), codes=frozenset({str(error).lower()}))
    return _error_body(error)


def _error_body(error: dict[str, Any]) -> ErrorBody:
    details = error.get("details")
    inner = details.get("error_code") if isinstance(details, dict) else None
    words = [error.get("type"), error.get("code"), error.get("status"), inner]
    number = next((w for w in words if isinstance(w, int) and not isinstance(w, bool) and 400 <= w < 600), None)
    return ErrorBody(
        message=str(error.get("message") or error),
        codes=frozenset(word.lower() for word in words if isinstance(word, str)),
        status=number,
        param=error["param"] if isinstance(error.get("param"), str) else None,
        resets=_stated_reset(error),
    )


def _stated_reset(error: dict[str, Any]) -> datetime | None:
    if (moment := _epoch(error.get("resets_at"))) is not None:
        return moment
    seconds = error.get("resets_in_seconds")
    return _after(seconds) if isinstance(seconds, int | float) else None


def body_of(text: str) -> ErrorBody:
    """The error in the text of a failed answer; any other text is its own message."""
    try:
        found = parse_error(json.loads(text))
    except (ValueError, RecursionError):
        found = None
    return found or ErrorBody(message=text or "(empty body)")


def failure(
    endpoint: Endpoint, error: ErrorBody, status: int = 200, headers: Mapping[str, str] | None = None
) -> FactoryError:
    """The exception for a failed answer. `status` 200: an error inside a good answer, judged by its own words."""
    status = error.status or status if status == 200 else status
    said = f"{endpoint} answered {status}: {endpoint.clean(error.message)!r}"
    return _by_words(endpoint, error, status, said, headers or {}) or _by_status(error, status, said, headers or {})


def _by_words(
    endpoint: Endpoint, error: ErrorBody, status: int, said: str, headers: Mapping[str, str]
) -> FactoryError | None:
    if WINDOW_WORDS.search(error.message):
        return RateLimited(f"{said}; wait until the reset", reset_time(headers, error))
    if status == 402 or error.codes & MONEY_CODES or _money_words(error):
        return QuotaExhausted(f"{said}; top up the account or raise its limit, then resume")
    if status == 413 or error.codes & CONTEXT_CODES or (status in (200, 400) and CONTEXT_WORDS.search(error.message)):
        return LimitReached(f"{said}; shorten the prompt or use a model with a larger context")
    if status == 404 or error.codes & MODEL_CODES or (status < 429 and MODEL_WORDS.search(error.message)):
        return UnknownModel(f"{said}; check the settings `model` and `model_url`: is {endpoint.model!r} offered there?")
    return None


def _money_words(error: ErrorBody) -> bool:
    """Gemini words every per-minute limit like a bill; its status tells them apart."""
    return "resource_exhausted" not in error.codes and MONEY_WORDS.search(error.message) is not None


def _by_status(error: ErrorBody, status: int, said: str, headers: Mapping[str, str]) -> FactoryError:
    if status in (401, 403) or error.codes & AUTH_CODES:
        return AuthFailed(f"{said}; check the API key (setting `model_key`) and its permissions")
    if status == 429 or error.codes & RATE_CODES:
        return RateLimited(f"{said}; wait", reset_time(headers, error))
    if status in (503, 529) or error.codes & BUSY_CODES or (status == 200 and BUSY_WORDS.search(error.message)):
        return CapacityUnavailable(f"{said}; try again later")
    if status >= 500 or status in (408, 409, 425) or error.codes & BROKEN_CODES:
        return Unreachable(f"{said}; try again later")
    if status == 200:
        return ProviderFault(f"{said}; this error is not known, look at the provider's log")
    if 300 <= status < 400:
        return ConfigError(f"{said}, a redirect to {headers.get('location')!r}; set `model_url` to the final address")
    return ConfigError(f"{said}; the endpoint refuses this request, check the settings `model` and `model_url`")


def reset_time(headers: Mapping[str, str], error: ErrorBody, now: datetime | None = None) -> datetime | None:
    """When to ask again (aware, UTC): wait headers, the body's own field, rate-limit headers, then words; or None."""
    now = now or datetime.now(UTC)
    return (
        _retry_after(headers, now)
        or error.resets
        or _limit_headers(headers, now)
        or _regain_words(error.message)
        or parse_reset(error.message, now)
    )


def _retry_after(headers: Mapping[str, str], now: datetime) -> datetime | None:
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return _after(milliseconds / 1000, now)
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return _after(seconds, now)
    try:
        moment = _aware(parsedate_to_datetime(value))
    except (ValueError, OverflowError):
        return None
    return _after((moment - now).total_seconds(), now)


LIMIT_HEADER = re.compile(r"(?P<family>(?:x-ratelimit|anthropic-ratelimit).*?)-?reset(?P<kind>-[a-z-]+)?$")


def _limit_headers(headers: Mapping[str, str], now: datetime) -> datetime | None:
    """The latest reset of the limits that are used up; of all when the headers name no used-up one."""
    resets = list(_resets(headers, now))
    spent = [moment for moment, remaining in resets if remaining == "0"]
    return max(spent or [moment for moment, _ in resets], default=None)


def _resets(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[datetime, str | None]]:
    for name, value in headers.items():
        match = LIMIT_HEADER.match(name.lower())
        moment = _moment(value, now) if match else None
        if match and moment:
            yield moment, headers.get(f"{match['family']}-remaining{match['kind'] or ''}")


def _moment(value: str, now: datetime) -> datetime | None:
    """`1m26.4s`, `4ms`, plain seconds, an epoch in seconds or milliseconds, or RFC 3339."""
    number = _number(value)
    if number is not None:
        return _epoch(number) if number > 1e9 else _after(number, now)
    if (seconds := duration_seconds(value)) is not None:
        return _after(seconds, now)
    try:
        return _aware(datetime.fromisoformat(value))
    except (ValueError, OverflowError):
        return None


UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def duration_seconds(text: str) -> float | None:
    """Seconds of a duration such as `6m0s`, `1m26.4s` or `2ms`; None for anything else."""
    if not text.strip() or DURATION.sub("", text.strip()):
        return None
    return sum(float(number) * UNIT_SECONDS[unit] for number, unit in DURATION.findall(text))


REGAIN_WORDS = re.compile(r"regain access on (\d{4}-\d\d-\d\d)(?: at (\d\d:\d\d))?")


def _regain_words(message: str) -> datetime | None:
    match = REGAIN_WORDS.search(message)
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2] or '00:00'}:00+00:00") if match else None
    except ValueError:
        return None


def _number(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\s*\d{1,15}(\.\d{1,9})?\s*", value) else None


def _after(seconds: float, now: datetime | None = None) -> datetime | None:
    """The moment after that many seconds; a past one is now, an absurd one is None."""
    if seconds > LONGEST_WAIT.total_seconds():
        return None
    return (now or datetime.now(UTC)) + timedelta(seconds=max(seconds, 0))


def _epoch(value: object) -> datetime | None:
    if not isinstance(value, int | float) or not 1e9 < value < 1e14:
        return None
    return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)


def _aware(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
