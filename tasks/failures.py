"""Whose fault a failed run was: the one place that decides what burns an attempt, what pauses, and for how long (I6, I7, I9).

Pure functions over what is known about the run. Messages are those that the agents and providers print.
"""

from __future__ import annotations

import json
import re
import signal as signals
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, ConfigDict, Field

from infra.errors import (
    AuthFailed,
    BudgetExhausted,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    FencedOff,
    InfraError,
    NeedsHuman,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    UnexpectedStatus,
    Unreachable,
)
from infra.llm import Frozen
from infra.llm.errors import (
    AUTH_CODES,
    BROKEN_CODES,
    BUSY_CODES,
    BUSY_WORDS,
    CONTEXT_CODES,
    CONTEXT_WORDS,
    MODEL_CODES,
    MODEL_WORDS,
    MONEY_CODES,
    MONEY_WORDS,
    RATE_CODES,
    Endpoint,
    ErrorBody,
    failure,
    parse_error,
    reset_time,
)
from infra.redaction import redact
from infra.reset_times import after_seconds, from_epoch, parse_reset

Kind = Literal[
    "limit", "money", "budget", "auth", "capacity", "transport", "host", "fast-death", "stalled", "timeout", "cancelled",
    "question", "config", "ticket",
]  # fmt: skip
Scope = Literal["ticket", "provider", "node", "factory"]

SCOPES: Mapping[Kind, Scope] = {
    "limit": "provider", "money": "provider", "budget": "ticket", "auth": "provider", "capacity": "provider", "transport": "provider",
    "host": "node", "fast-death": "ticket", "stalled": "ticket", "timeout": "ticket", "cancelled": "ticket",
    "question": "ticket", "config": "ticket", "ticket": "ticket",
}  # fmt: skip
BURNING = frozenset[Kind]({"ticket", "timeout", "stalled"})
UNCOUNTED = frozenset[Kind]({"question", "cancelled"})
WAITING = frozenset[Kind]({"limit", "capacity", "transport"})
"""Kinds for which a named moment is when to ask again."""
PASSING = frozenset[Kind]({"capacity", "transport"})
"""Kinds that agents report and overcome, so their messages count only at the end of the output."""

MEANING: Mapping[Kind, str] = {
    "limit": "the provider's limit is reached",
    "money": "the account's money or quota is used up, a person has to act",
    "budget": "a budget of ours is used up",
    "auth": "the provider refuses the credentials",
    "capacity": "the provider has no room",
    "transport": "the provider cannot be reached or is broken",
    "host": "the node failed",
    "fast-death": "the run died as it started",
    "stalled": "the run fell silent and was stopped",
    "timeout": "the run took too long and was stopped",
    "cancelled": "the run was stopped",
    "question": "a person has to answer",
    "config": "a person has to change a setting",
    "ticket": "the work failed",
}
BUDGET_SOON = timedelta(minutes=1)
"""A budget that opens within this time is in the hands of calls under way; only the ticket waits."""
LONGEST_REASON = 300
LONGEST_MESSAGE = 4_000
"""Characters of one foreign message that are looked at."""


class Ending(Frozen):
    """What is known about a run that did not succeed.

    `text` is the tail of its output or its error message; `events` are the agent's structured events in their order;
    `killed` says why the factory itself ended it; `provider` names the agent or API, `node` the machine.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    exit_code: int | None = None
    """Negative where a signal ended the process."""
    signal: int | None = None
    seconds: float = Field(ge=0)
    text: str = ""
    events: tuple[dict[str, Any], ...] = ()
    commits: int = 0
    error: FactoryError | None = None
    killed: Literal["stalled", "timeout", "cancelled"] | None = None
    provider: str = ""
    node: str = ""


class Fault(Frozen):
    """Why a run failed, what has to wait (`scope`), until when if that is known (UTC), and whether an attempt is burnt."""

    kind: Kind
    scope: Scope
    burns: bool
    reset_at: AwareDatetime | None = None
    reason: str


def classify(ending: Ending, now: datetime, *, fail_fast_seconds: float = 10) -> Fault:
    """Decide whose fault an ending was (RB8). The most trustworthy sign wins: our own cancelling, the exception's class,
    structured events, exit code and signal, printed messages, our own time limits, and last how long it ran."""
    return (
        (_fault("cancelled", ending) if ending.killed == "cancelled" else None)
        or _of_exception(ending, now)
        or _of_events(ending, now)
        or _of_exit(ending)
        or _of_text(ending, now)
        or _of_duration(ending, fail_fast_seconds)
    )


def _fault(
    kind: Kind, ending: Ending, said: str = "", reset_at: datetime | None = None, scope: Scope | None = None
) -> Fault:
    where = ending.node if (scope or SCOPES[kind]) == "node" else ending.provider
    parts = [part for part in ("" if kind == "budget" else where, MEANING[kind], said) if part]
    return Fault(
        kind=kind,
        scope=scope or SCOPES[kind],
        burns=kind in BURNING,
        reset_at=reset_at,
        reason=_one_line(": ".join(parts)),
    )


def _one_line(text: str) -> str:
    """Printable, short, and without secrets: it is shown to people and may quote hostile text."""
    shown = "".join(letter if letter.isprintable() else " " for letter in _plain(redact(text[:LONGEST_MESSAGE])))
    return Endpoint(model="", url="").clean(shown, LONGEST_REASON)


# --- exceptions -------------------------------------------------------------------------------------------------------

ERROR_KINDS: tuple[tuple[type[FactoryError], Kind], ...] = (
    (RateLimited, "limit"),
    (QuotaExhausted, "money"),
    (BudgetExhausted, "budget"),
    (AuthFailed, "auth"),
    (CapacityUnavailable, "capacity"),
    (Unreachable, "transport"),
    (ProviderFault, "transport"),
    (UnexpectedStatus, "transport"),
    (FencedOff, "cancelled"),
    (NeedsHuman, "question"),
    (ConfigError, "config"),
    (InfraError, "host"),
    (FactoryError, "ticket"),
)
"""The first row that fits counts, so classes stand above their bases."""


def _kind_of_error(error: FactoryError) -> Kind:
    return next(kind for group, kind in ERROR_KINDS if isinstance(error, group))


def _of_exception(ending: Ending, now: datetime) -> Fault | None:
    error = ending.error
    if error is None:
        return None
    reset_at = error.reset_at if isinstance(error, RateLimited | BudgetExhausted) else None
    scope = _scope_of_budget(error, now) if isinstance(error, BudgetExhausted) else None
    return _fault(_kind_of_error(error), ending, str(error), reset_at, scope)


def _scope_of_budget(error: BudgetExhausted, now: datetime) -> Scope:
    """A day's or month's money rests for everybody, unless there is some again before others could notice."""
    if error.scope in ("ticket", "role") or error.reset_at is None:
        return "ticket"
    return "factory" if error.reset_at > now + BUDGET_SOON else "ticket"


# --- what messages mean -----------------------------------------------------------------------------------------------

AGENTS = ("claude", "codex", "opencode", "mini-swe", "copilot", "gemini")


class Row(NamedTuple):
    """A message that is known word for word. `agent`: only that agent prints it; "": any may pass it on from an API."""

    kind: Kind
    pattern: re.Pattern[str]
    agent: str = ""
    scope: Scope | None = None


def _row(kind: Kind, pattern: str, agent: str = "", scope: Scope | None = None) -> Row:
    return Row(kind, re.compile(pattern, re.IGNORECASE), agent, scope)


EXACT: tuple[Row, ...] = (
    _row("limit", r"(?:429 )?resource_exhausted"),  # first: Gemini words a limit per minute like a bill
    _row("money", r"(?:your )?credit balance is too low|insufficient_quota|billing_not_active"),
    _row("money", r"you(?:'ve| have) (?:hit|reached) your (?:[\w'-]+ ){0,3}spend(?:ing)? limit|your workspace is out of credits"),
    _row("money", r"quota exceeded\. check your plan and billing", "codex"),
    _row("money", r"you exceeded your current quota, please check your plan and billing"),
    _row("auth", r"invalid x-api-key|invalid_api_key|incorrect api key provided"),
    _row("auth", r"invalid api key\b|not logged in|login expired|session expired\. please run /login", "claude"),
    _row("auth", r"oauth token (?:revoked|has (?:been revoked|expired))|failed to authenticate", "claude"),
    _row("auth", r"(?:your |this )?organization (?:has disabled|does not have access to claude)", "claude"),
    _row("auth", r"your account (?:is on hold|does not have access to claude)", "claude"),
    _row("auth", r"unexpected status 401|(?:your )?access token could not be refreshed", "codex"),
    _row("auth", r"(?:your )?refresh token was (?:revoked|already used)", "codex"),
    _row("limit", r"you(?:'ve| have) (?:hit|reached) your [^.\n]{0,60}?limit\b", "claude"),
    _row("limit", r"you're out of (?:extra usage|usage credits)|your org is out of usage|your group's usage limit", "claude"),
    _row("limit", r"your seat type doesn't include|your usage allocation has been disabled", "claude"),
    _row("limit", r"claude ai usage limit reached|(?:claude )?usage limit reached\. your limit will reset", "claude"),
    _row("limit", r"(?:5-hour|session|weekly|opus|sonnet) limit reached\b|[^\n]{0,80}\brequires usage credits", "claude"),
    _row("limit", r"you(?:'ve| have) hit your usage limit|usage_limit_reached", "codex"),
    _row("limit", r"(?:sorry, )?you've hit a rate limit that restricts the number of copilot", "copilot"),
    _row("limit", r"this request would exceed your (?:account|organization)'s rate limit"),
    _row("limit", r"you have reached your specified api usage limits|rate limit of \d{1,9} per \d{1,9}s exceeded for user"),
    _row("limit", r"rate limit reached for \S{1,80} [^\n]{0,200}\b(?:[TR]P[MD]|per (?:min|day))\b"),
    _row("ticket", r"prompt is too long\b", "claude"),
    _row("config", r"there's an issue with the selected model", "claude", "provider"),
    _row("config", r"[^\n]{0,60}cannot be used with root/sudo", "claude", "node"),
    _row("config", r"not inside a trusted directory|missing environment variable", "codex", "node"),
    _row("config", r"[^\n]{0,60}wire_api[^\n]{0,60}is no longer supported", "codex", "node"),
    _row("capacity", r"repeated 529 overloaded errors", "claude"),
    _row("capacity", r"selected model is at capacity", "codex"),
    _row("transport", r"stream disconnected before completion|reconnecting\.\.\. \d{1,3}/\d", "codex"),
    _row("host", r"bwrap: |docker: (?:error response from daemon|cannot connect)"),
)  # fmt: skip
"""Whole messages. They count wherever a line begins with one, and anywhere in a message that the agent's harness wrote."""

WORDS: tuple[Row, ...] = (
    _row("host", r"no space left on device|\benospc\b|disk quota exceeded|cannot allocate memory|\bout of memory\b"),
    Row("ticket", CONTEXT_WORDS),
    Row("ticket", re.compile(r"contextwindowexceeded|contextoverflowerror", re.IGNORECASE)),
    _row("limit", r"resource[_ ]?exhausted"),
    Row("money", MONEY_WORDS),
    Row("config", MODEL_WORDS, scope="provider"),
    _row("limit", r"too many requests|\brate[ _-]?limit(?:ed|s|_error|error| exceeded| reached|\b)|usage limit|quota exceeded"),
    _row("auth", r"\bunauthorized\b|authentication (?:failed|error)|invalid api key|authenticationerror"),
    Row("capacity", BUSY_WORDS),
    _row("capacity", r"service unavailable"),
    _row("transport", r"enginedeaderror|bad gateway|gateway time-?out|internal server error|socket hang up"),
    _row("transport", r"could not resolve host|name or service not known|temporary failure in name resolution"),
    _row("transport", r"connection (?:refused|reset|error|timed out|closed)|network is unreachable|apiconnectionerror"),
    _row("transport", r"\b(?:econnrefused|econnreset|etimedout|enotfound|eai_again)\b|request timed out"),
)  # fmt: skip
"""Words that any program may print. They count only where the agent prints its errors."""

CODE_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(MODEL_CODES, "config"),
    **dict.fromkeys(BROKEN_CODES, "transport"),
    **dict.fromkeys(BUSY_CODES, "capacity"),
    **dict.fromkeys(RATE_CODES, "limit"),
    **dict.fromkeys(AUTH_CODES, "auth"),
    **dict.fromkeys(CONTEXT_CODES, "ticket"),
    **dict.fromkeys(MONEY_CODES, "money"),
    # Claude Code: `error` of an assistant event, `subtype` and `terminal_reason` of the result
    **dict.fromkeys("authentication_failed oauth_org_not_allowed account_on_hold".split(), "auth"),
    **dict.fromkeys("verification_required cloud_credential_error".split(), "auth"),
    **dict.fromkeys("rate_limit blocking_limit".split(), "limit"),
    **dict.fromkeys("error_max_turns error_max_budget_usd error_max_structured_output_retries".split(), "ticket"),
    **dict.fromkeys("max_turns budget_exhausted prompt_too_long max_output_tokens image_error".split(), "ticket"),
    **dict.fromkeys("malformed_tool_use_exhausted structured_output_retry_exhausted".split(), "ticket"),
    # mini-swe-agent's exit_status (a class name of litellm, or its own) and OpenCode's error names
    **dict.fromkeys("authenticationerror permissiondeniederror providerautherror".split(), "auth"),
    **dict.fromkeys("ratelimiterror usagelimitexceeded".split(), "limit"),
    **dict.fromkeys("serviceunavailableerror".split(), "capacity"),
    **dict.fromkeys("apiconnectionerror timeout badgatewayerror".split(), "transport"),
    **dict.fromkeys("limitsexceeded timeexceeded contextwindowexceedederror contextoverflowerror".split(), "ticket"),
}
"""Machine-readable codes of providers and agents, in lower case."""

TRUSTED_FIRST: tuple[Kind, ...] = ("money", "ticket", "auth", "limit", "capacity", "transport", "config")
"""Which of several codes of one error says most: a 429 may be a bill, and a 400 a full context."""

STATED_STATUS = re.compile(
    r"(?:\bstatus(?: code)?:?|error code:|api error:|request rejected|\bhttp(?:/[\d.]{1,3})?)\s{0,2}\(?(?P<status>[45]\d\d)\b",
    re.IGNORECASE,
)
VAGUE_STATUSES = frozenset({400, 405, 406, 415, 422})
"""These blame the request. Nobody knows who made it bad, so it does not stop the provider for everybody."""


class Complaint(NamedTuple):
    """What a harness or a provider said about the error, in its own fields."""

    message: str
    codes: frozenset[str] = frozenset()
    status: int | None = None
    reset_at: datetime | None = None
    headers: Mapping[str, str] = {}


class Meaning(NamedTuple):
    kind: Kind
    scope: Scope | None = None


def _meaning(complaint: Complaint, agent: str) -> Meaning | None:
    """What an error message means that surely is one; None when nothing in it is known."""
    message = _plain(complaint.message[:LONGEST_MESSAGE])
    body = _body_in(message)
    exact = _row_for(message, EXACT, agent)
    if exact and exact.kind == "money":
        return Meaning("money")
    if kind := _kind_of_codes(complaint.codes | (body.codes if body else frozenset())):
        return Meaning(kind, "provider" if kind == "config" else None)
    if row := exact or _row_for(message, WORDS, agent):
        return Meaning(row.kind, row.scope)
    return _meaning_of_status(message, complaint.status or (body.status if body else None) or _stated_status(message))


def _row_for(message: str, rows: tuple[Row, ...], agent: str) -> Row | None:
    return next((row for row in rows if _speaks(row, agent) and row.pattern.search(message)), None)


def _speaks(row: Row, provider: str) -> bool:
    """Messages of one agent say nothing in another one's output; behind an unknown name may be any."""
    return not row.agent or row.agent in provider or not any(agent in provider for agent in AGENTS)


def _kind_of_codes(codes: frozenset[str]) -> Kind | None:
    kinds = {CODE_KINDS[code] for code in codes if code in CODE_KINDS}
    return next((kind for kind in TRUSTED_FIRST if kind in kinds), None)


def _meaning_of_status(message: str, status: int | None) -> Meaning | None:
    if status is None or status < 400 or status in VAGUE_STATUSES:
        return None
    kind = _kind_of_error(failure(Endpoint(model="", url=""), ErrorBody(message=message), status))
    return Meaning(kind, "provider" if kind == "config" else None)


def _stated_status(message: str) -> int | None:
    match = STATED_STATUS.search(message)
    return int(match["status"]) if match else None


def _body_in(message: str) -> ErrorBody | None:
    """The error object of a JSON body that a message quotes."""
    start = message.find("{")
    try:
        return parse_error(json.JSONDecoder().raw_decode(message, start)[0]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None


ANSI = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")


def _plain(text: str) -> str:
    return ANSI.sub("", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


# --- structured events ------------------------------------------------------------------------------------------------

SILENT_EVENTS = frozenset({"rate_limit_event", "stream_event", "thread.started", "turn.started", "cost-state"})
"""Bookkeeping of the agents; it says nothing about how the run goes."""


def _of_events(ending: Ending, now: datetime) -> Fault | None:
    complaint = _complaint(ending.events, now)
    meaning = _meaning(complaint, ending.provider) if complaint else None
    if complaint is None or meaning is None:
        return None
    named = complaint.reset_at or _rejected_until(ending.events, now) or parse_reset(complaint.message, now)
    reset_at = named or reset_time(complaint.headers, ErrorBody(message=""), now)
    said = complaint.message or ", ".join(sorted(complaint.codes))
    return _fault(meaning.kind, ending, said, reset_at if meaning.kind in WAITING else None, meaning.scope)


def _complaint(events: Sequence[dict[str, Any]], now: datetime) -> Complaint | None:
    """The error that the run ended with. An error that is followed by work was overcome."""
    last = _last_word(events)
    if last is None:
        return None
    match last.get("type"):
        case "result":
            return _of_result(last, events)
        case "assistant":
            return _of_assistant(last)
        case "system":
            return _of_retry(last)
        case "turn.completed" | "user":
            return None
    return _of_exit_status(last) or _of_error_field(last, now)


def _last_word(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if not _is_silent(event)), None)


def _is_silent(event: dict[str, Any]) -> bool:
    if event.get("type") == "system":
        return event.get("subtype") != "api_retry"
    return _string(event.get("type")) in SILENT_EVENTS or _dict(event.get("item")).get("type") == "error"


def _of_result(result: dict[str, Any], events: Sequence[dict[str, Any]]) -> Complaint | None:
    """Claude Code says `"subtype": "success"` of every API error: only `is_error` and the error fields are true."""
    subtype = _string(result.get("subtype"))
    if not result.get("is_error") and not subtype.startswith("error"):
        return None
    spoken = [_of_assistant(event) for event in events[-8:] if event.get("type") == "assistant"]
    reasons = [complaint for complaint in spoken[-1:] if complaint]
    codes = {subtype, _string(result.get("terminal_reason"))} - {"api_error"}  # says so of every refusal
    codes = codes.union(*(reason.codes for reason in reasons))
    words = [_string(result.get("result")), *map(_string, _list(result.get("errors")))]
    return Complaint(" ".join(filter(None, words)), frozenset(codes), _number(result.get("api_error_status")))


def _of_assistant(event: dict[str, Any]) -> Complaint | None:
    if not (code := _string(event.get("error"))):
        return None
    parts = _list(_dict(event.get("message")).get("content"))
    return Complaint(" ".join(_string(_dict(part).get("text")) for part in parts), frozenset({code}))


def _of_retry(event: dict[str, Any]) -> Complaint:
    """Claude Code retries inside: without a status nobody answered."""
    code, status = _string(event.get("error")), _number(event.get("error_status"))
    return Complaint(code, frozenset({code} if status else {code, "apiconnectionerror"}), status)


def _of_exit_status(event: dict[str, Any]) -> Complaint | None:
    """mini-swe-agent's trajectory: `exit_status`, alone or in `info`, is the class of the exception that ended it."""
    info = _dict(event.get("info")) or event
    status = _string(info.get("exit_status"))
    said = _string(info.get("exception_str")) or _string(info.get("submission"))
    return Complaint(said, frozenset({status.rpartition(".")[2].lower()})) if status else None


def _of_error_field(event: dict[str, Any], now: datetime) -> Complaint | None:
    """Codex: `turn.failed` and `error`; OpenCode: `error.name` and `error.data`; every API: its own error object."""
    if event.get("type") == "error" and "error" not in event:
        return Complaint(_string(event.get("message")))
    error = event.get("error")
    body = parse_error(event)
    if body is None:
        return None
    fields = _dict(error)
    data = _dict(fields.get("data"))
    reset_at = from_epoch(fields.get("resets_at"), now) or after_seconds(fields.get("resets_in_seconds"), now)
    return Complaint(
        _string(data.get("message")) or body.message,
        body.codes | {_string(fields.get("name")).lower()},
        _number(data.get("statusCode")) or body.status,
        reset_at,
        {str(name).lower(): str(value) for name, value in _dict(data.get("responseHeaders")).items()},
    )


def _rejected_until(events: Sequence[dict[str, Any]], now: datetime) -> datetime | None:
    """When Claude Code's account may ask again, by its last rejection."""
    for event in reversed(events):
        info = _dict(event.get("rate_limit_info"))
        if event.get("type") == "rate_limit_event" and info.get("status") == "rejected":
            return from_epoch(info.get("resetsAt"), now)
    return None


def _finished(events: Sequence[dict[str, Any]]) -> bool:
    """The agent says it came to an end by itself, so its last lines are prose."""
    last = _last_word(events) or {}
    return last.get("type") == "turn.completed" or (last.get("type") == "result" and not last.get("is_error"))


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


# --- exit codes -------------------------------------------------------------------------------------------------------

STOPPED_BY = frozenset({signals.SIGTERM, signals.SIGINT, signals.SIGHUP})


def _of_exit(ending: Ending) -> Fault | None:
    if ending.killed:  # our own signal
        return None
    number = _signal_number(ending)
    if number == signals.SIGKILL:
        return _fault("host", ending, "killed (SIGKILL), most likely for want of memory")
    if number in STOPPED_BY:
        return _fault("cancelled", ending, f"by signal {number}")
    if ending.exit_code in (126, 127) and not ending.commits:
        return _fault("config", ending, f"its command cannot be run (exit {ending.exit_code})", scope="node")
    return _fault("host", ending, "nobody saw how the run ended") if _is_unseen(ending) else None


def _signal_number(ending: Ending) -> int | None:
    """A shell reports a signal as 128 more than its number, asyncio as its negative."""
    code = ending.exit_code or 0
    return ending.signal or (-code if code < 0 else code - 128 if 128 < code <= 192 else None)


def _is_unseen(ending: Ending) -> bool:
    known = ending.exit_code is not None or ending.signal is not None
    return not known and not ending.text.strip() and not ending.events


# --- printed text -----------------------------------------------------------------------------------------------------

LONGEST_TEXT = 20_000
LONGEST_LINE = 2_000
CLOSING_LINES = 3
STAMP = r"(?:\[?\d{4}-\d\d-\d\d[T ][\d:.,]{5,18}(?:Z|[+-]\d\d:?\d\d)?\]?\s+)?"
DECORATION = re.compile(rf"\s{{0,2}}{STAMP}(?:[■●•⎿✗✖×⚠│┃]{{1,2}}\s{{0,2}})?")
LABEL = re.compile(
    r"(?:(?:error|fatal|codex|claude|opencode|gemini|copilot|mini|api error)(?:\s\[\w+\])?:\s{1,3}){1,3}", re.IGNORECASE
)
HARNESS_STATUS = re.compile(
    r"API Error: (?:[45]\d\d \{|Request rejected \()|exceeded retry limit, last status: [45]\d\d"
    r"|unexpected status [45]\d\d "
)
"""Lines with a status that only an agent's own error handling writes."""
CLIENT_ERROR = re.compile(r"(?:openai|anthropic|litellm|httpx|google)(?:\.\w{1,40}){0,4}\.\w{0,40}(?:Error|Timeout)\b")
ERROR_LINE = re.compile(
    r"(?:[\w.]{0,80}(?:Error|Exception|Timeout)|error|fatal|panic|ERROR|FATAL|Fatal|API Error|curl|docker|git|ssh|npm ERR!"
    r"|codex|claude|opencode|gemini|copilot|mini|sh|bash)\b[^:\n]{0,40}:"
)
TEST_RESULT = re.compile(
    r"\b\d{1,7} (?:failed|passed|errors?|failing|passing)\b|^FAIL(?:ED|URES)?\b|^--- FAIL|^(?:ERROR|FAILED) \S+::|^Ran \d+ tests?\b"
    r"|^not ok\b|^# (?:fail|pass) \d|^Tests:|^E {2,}|assert",
    re.IGNORECASE,
)


def _of_text(ending: Ending, now: datetime) -> Fault | None:
    lines = [line[:LONGEST_LINE] for line in _plain(ending.text[-LONGEST_TEXT:]).splitlines() if line.strip()]
    number, meaning = next(_said(lines, ending), (0, None))
    if meaning is None:
        return None
    reset_at = parse_reset("\n".join(lines[number : number + 3]), now) if meaning.kind in WAITING else None
    return _fault(meaning.kind, ending, lines[number].strip(), reset_at, meaning.scope)


def _said(lines: Sequence[str], ending: Ending) -> Iterator[tuple[int, Meaning]]:
    """Known messages, the last one first; then, where they can be believed, words. With the numbers of their lines."""
    closing = len(lines) - CLOSING_LINES
    for number in reversed(range(len(lines))):
        meaning = _exact_meaning(lines[number], ending.provider)
        if meaning and (meaning.kind not in PASSING or number >= closing):
            yield number, meaning
    for number in _error_lines(lines, ending):
        if meaning := _meaning(Complaint(lines[number]), ending.provider):
            yield number, meaning


def _exact_meaning(line: str, agent: str) -> Meaning | None:
    """What a line means that is a known message from its beginning. Code, diffs and quotations begin otherwise."""
    said = DECORATION.sub("", line, count=1)
    label = LABEL.match(said)
    bare = said[label.end() :] if label else said
    if HARNESS_STATUS.match(said) or HARNESS_STATUS.match(bare):
        return _meaning(Complaint(said), agent)
    row = next((row for row in EXACT if _speaks(row, agent) and row.pattern.match(bare)), None)
    return Meaning(row.kind, row.scope) if row else None


def _error_lines(lines: Sequence[str], ending: Ending) -> Iterator[int]:
    """Numbers of the closing lines in which the agent itself, not a test or a model, may have said why it ended.

    Commits prove that the model answered, so then only the exception of a provider's client that ended the run counts.
    """
    closing = range(max(len(lines) - CLOSING_LINES, 0), len(lines))
    if _finished(ending.events) or any(TEST_RESULT.search(lines[number]) for number in closing):
        return
    believed = CLIENT_ERROR if ending.commits else ERROR_LINE
    for number in reversed(closing[-1:] if ending.commits else closing):
        if believed.match(DECORATION.sub("", lines[number], count=1)):
            yield number


# --- time -------------------------------------------------------------------------------------------------------------


def _of_duration(ending: Ending, fail_fast_seconds: float) -> Fault:
    """The last resort. A silent run is only held against a ticket on which something happened: some agents wait for a
    limit to end without a word."""
    if ending.killed == "stalled" and not (ending.text.strip() or ending.events or ending.commits):
        return _fault("stalled", ending, "it never said anything").model_copy(update={"burns": False})
    if ending.killed in ("stalled", "timeout"):
        return _fault(ending.killed, ending, f"after {ending.seconds:.0f} s")
    if ending.seconds < fail_fast_seconds:
        return _fault(
            "fast-death", ending, f"exit {ending.exit_code} after {ending.seconds:.1f} s; {_last_line(ending)}"
        )
    return _fault("ticket", ending, f"exit {ending.exit_code} after {ending.seconds:.0f} s; {_last_line(ending)}")


def _last_line(ending: Ending) -> str:
    lines = ending.text[-LONGEST_TEXT:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


# --- what follows -----------------------------------------------------------------------------------------------------


def retry_delay(attempt: int) -> float:
    """Seconds to wait before the next attempt of a ticket, after its `attempt`-th failure (RB1)."""
    return float(min(10 * 2 ** min(max(attempt, 1) - 1, 5), 300))


def pause_until(fault: Fault, now: datetime, earlier_pauses: int) -> datetime | None:
    """Until when the fault's scope rests; None: until a person acts. A fault of the ticket alone pauses nothing: `now`.

    `earlier_pauses` counts those in a row without a success between. A moment that passed already tells nothing.
    """
    if fault.scope == "ticket":
        return now
    if fault.kind in ("money", "config"):
        return None
    if fault.reset_at is not None and fault.reset_at > now:
        return fault.reset_at
    if fault.kind == "auth":
        return now + timedelta(minutes=15)
    first, longest = (300, 3600) if fault.kind == "limit" else (30, 600)
    return now + timedelta(seconds=min(first * 2 ** min(max(earlier_pauses, 0), 10), longest))


def rests_with_a_person(fault: Fault) -> bool:
    """Whether the ticket is parked at once: trying again changes nothing before a person does."""
    return fault.kind == "config" or (fault.kind == "budget" and fault.reset_at is None)


def next_tier(burnt: int, has_strong: bool) -> Literal["default", "strong"]:
    """Which model the next attempt gets: the strong one once two attempts are burnt (RB10)."""
    return "strong" if has_strong and burnt >= 2 else "default"


class Launch(Frozen):
    """A launch that ended. `fast_failure`: it failed within the seconds that count as fast."""

    ended_at: AwareDatetime
    seconds: float
    fast_failure: bool


def should_pause(
    launches: Sequence[Launch], now: datetime, *, window_seconds: float, share: float, min_launches: int
) -> str | None:
    """Why dispatch has to pause itself: over `share` (0 to 1) of the launches that ended in the window failed fast (RB9)."""
    begin = now - timedelta(seconds=window_seconds)
    recent = [launch for launch in launches if launch.ended_at >= begin]
    fast = sum(launch.fast_failure for launch in recent)
    if len(recent) < max(min_launches, 1) or fast / len(recent) <= share:
        return None
    return (
        f"{fast} of the {len(recent)} launches that ended in the last {window_seconds / 60:g} minutes failed at once "
        f"(more than {share:.0%}); look at the reasons of their runs"
    )


class Counters(Frozen):
    """What happened to a ticket so far. Only `failures` uses up attempts; the others have bounds of their own (RB6)."""

    failures: int = 0
    continuations: int = 0
    revisions: int = 0
    ci_fixes: int = 0
    conflict_fixes: int = 0
    infra_faults: int = 0


def after(counters: Counters, fault: Fault) -> Counters:
    """The counters after one more fault: one of them moves, and none for a question or a run that was stopped (RB6)."""
    if fault.kind in UNCOUNTED:
        return counters
    name = "failures" if fault.burns else "infra_faults"
    return counters.model_copy(update={name: getattr(counters, name) + 1})
