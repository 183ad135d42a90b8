"""Whose fault a failure was: real messages of agents and providers, look-alikes, and what follows from a fault."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import errors
from tasks.failures import (
    CODE_KINDS,
    Counters,
    Ending,
    Fault,
    Launch,
    after,
    classify,
    next_tier,
    pause_until,
    retry_delay,
    should_pause,
)

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
SOON = int((NOW + timedelta(hours=3)).timestamp())


def at(hour: int, minute: int = 0, day: int = 21) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


def ending(text: str = "", **known: Any) -> Ending:
    """A run that worked for a while and then ended with exit code 1."""
    return Ending(**{"text": text, "exit_code": 1, "seconds": 120.0, "provider": "command", "node": "n1"} | known)


def result(message: str = "", status: int | None = None, **fields: Any) -> dict[str, Any]:
    """Claude Code's last event. Its subtype says "success" of every API error."""
    return {
        "type": "result",
        "subtype": "success",
        "is_error": True,
        "api_error_status": status,
        "terminal_reason": "api_error",
        "result": message,
    } | fields


def refused(code: str, message: str = "") -> dict[str, Any]:
    return {"type": "assistant", "error": code, "message": {"content": [{"type": "text", "text": message}]}}


def api(kind: str, message: str) -> str:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})


CLAUDE, CODEX, OPENCODE, MINI, API = "claude-code", "codex", "opencode", "mini-swe", "openai"

PRINTED: list[tuple[str, str, str, datetime | None]] = [
    # limits
    (CLAUDE, "You've hit your 5-hour limit · resets 6:07am (UTC)", "limit", at(6, 7)),
    (CLAUDE, "You've hit your limit · resets 4am (America/Chicago)", "limit", at(10)),
    (CLAUDE, "You've hit your weekly limit · resets Nov 24, 2pm (Europe/Paris)", "limit", at(13, day=24)),
    (CLAUDE, "You've hit your session limit · resets 3:20am (Asia/Calcutta)", "limit", at(21, 50)),
    (CLAUDE, "You've hit your Opus limit · resets Mon 12:00am", "limit", at(0, day=23)),
    (CLAUDE, "You've hit your Sonnet limit · resets in 1d 5h", "limit", at(8, day=22)),
    (CLAUDE, "You’ve reached your limit for Claude messages. Limits will reset at 9:30 AM.", "limit", at(9, 30)),
    (CLAUDE, "You're out of extra usage · resets 3:30pm", "limit", at(15, 30)),
    (CLAUDE, "You're out of usage credits", "limit", None),
    (CLAUDE, "Your org is out of usage", "limit", None),
    (CLAUDE, "Your group's usage limit has been reached", "limit", None),
    (CLAUDE, "Your seat type doesn't include Claude Code usage", "limit", None),
    (CLAUDE, "Your usage allocation has been disabled by your admin", "limit", None),
    (CLAUDE, "Opus with 1M context requires usage credits", "limit", None),
    (CLAUDE, f"Claude AI usage limit reached|{SOON}", "limit", at(6)),
    (CLAUDE, "Claude usage limit reached. Your limit will reset at 3pm (America/Bogota).", "limit", at(20)),
    (CLAUDE, "5-hour limit reached ∙ resets 3pm", "limit", at(15)),
    (
        CLAUDE,
        "API Error: Request rejected (429) · This request would exceed your account's rate limit. Please try again later.",
        "limit",
        None,
    ),
    (
        CLAUDE,
        "API Error: 429 "
        + api("rate_limit_error", "would exceed your organization's rate limit of 30,000 input tokens per minute"),
        "limit",
        None,
    ),
    (CODEX, "■ You’ve hit your usage limit. Upgrade to Pro or try again at 6:08 AM.", "limit", at(6, 8)),
    (CODEX, "ERROR: You've hit your usage limit. Try again in 5 days 3 hours 2\nminutes.", "limit", at(6, 2, day=26)),
    (CODEX, "You've hit your usage limit for GPT-5. Try again at Nov 23rd, 2026 1:47 AM.", "limit", at(1, 47, day=23)),
    (CODEX, "exceeded retry limit, last status: 429 Too Many Requests, request id: abc", "limit", None),
    (CODEX, "ERROR: rate limit exceeded: Rate limit reached for gpt-5 on tokens per min (TPM)", "limit", None),
    (
        "copilot",
        "Sorry, you've hit a rate limit that restricts the number of Copilot model requests. Please try again in 2 hours",
        "limit",
        at(5),
    ),
    (
        API,
        "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 5631 seconds before retrying.",
        "limit",
        at(4, 33).replace(second=51),
    ),
    (
        API,
        "Rate limit of 15 per 60s exceeded for UserByModelByMinute. Please wait 12 seconds before retrying.",
        "limit",
        at(3).replace(second=12),
    ),
    (
        API,
        "You have reached your specified API usage limits. You will regain access on 2026-11-25 at 00:00 UTC",
        "limit",
        at(0, day=25),
    ),
    (API, "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC", "limit", None),
    (
        API,
        "Rate limit reached for gpt-4o in organization org-1 on requests per min (RPM): Limit 3. Please try again in 8s.",
        "limit",
        at(3).replace(second=8),
    ),
    (
        "gemini",
        'ERROR: {"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing '
        'details. Please retry in 31s.", "status": "RESOURCE_EXHAUSTED"}}',
        "limit",
        at(3).replace(second=31),
    ),
    ("gemini", "Error: Resource exhausted", "limit", None),
    ("gemini", "Error: Quota exceeded for requests per day", "limit", None),
    # money
    (CLAUDE, "Credit balance is too low", "money", None),
    (CLAUDE, "API Error: 400 " + api("invalid_request_error", "Your credit balance is too low"), "money", None),
    (CLAUDE, "You've hit your monthly spend limit · resets Dec 1", "money", None),
    (CODEX, "Quota exceeded. Check your plan and billing details.", "money", None),
    (CODEX, "Your workspace is out of credits. Add credits to continue.", "money", None),
    (API, "Error: billing_not_active", "money", None),
    (
        MINI,
        "openai.RateLimitError: Error code: 429 - {'error': {'message': 'You exceeded your current quota, please check "
        "your plan and billing details.', 'type': 'insufficient_quota', 'code': 'insufficient_quota'}}",
        "money",
        None,
    ),
    (API, "You exceeded your current quota, please check your plan and billing details.", "money", None),
    (API, "Error: HTTP 402 Payment Required", "money", None),
    # credentials
    (CLAUDE, "Invalid API key · Fix external API key", "auth", None),
    (CLAUDE, "Not logged in · Please run /login", "auth", None),
    (CLAUDE, "Login expired · Please run /login", "auth", None),
    (CLAUDE, "OAuth token revoked · Please run /login", "auth", None),
    (CLAUDE, "OAuth token has expired. Please obtain a new token", "auth", None),
    (CLAUDE, "API Error: 401 " + api("authentication_error", "invalid x-api-key") + " · Please run /login", "auth", None),
    (CLAUDE, "Failed to authenticate. API Error: 401", "auth", None),
    (CLAUDE, "Your organization has disabled Claude subscription access for Claude Code", "auth", None),
    (CLAUDE, "Your organization does not have access to Claude. Please login again", "auth", None),
    (CLAUDE, "Your account does not have access to Claude", "auth", None),
    (CLAUDE, "Your account is on hold", "auth", None),
    (CODEX, "ERROR: unexpected status 401 Unauthorized: Incorrect API key provided: sk-test", "auth", None),
    (CODEX, "Your access token could not be refreshed because your refresh token was revoked.", "auth", None),
    (CODEX, "Your refresh token was already used. Please log in again.", "auth", None),
    (API, "This request would exceed your account's rate limit. Please try again later.", "limit", None),
    (API, "Error: Unauthorized", "auth", None),
    (API, "Error: Service Unavailable", "capacity", None),
    (API, "Error: insufficient credits", "money", None),
    (API, "Error code: 404 - {'error': {'code': 'model_not_found'}}", "config", None),
    (API, "invalid x-api-key", "auth", None),
    (API, "Error: Incorrect API key provided: sk-proj-abcdefghijklmnopqrst", "auth", None),
    ("embedded", 'Error: {"error":"Unauthorized"}', "auth", None),
    # no room, no way
    (CLAUDE, "API Error: 529 " + api("overloaded_error", "Overloaded"), "capacity", None),
    (CLAUDE, "API Error: Repeated 529 Overloaded errors", "capacity", None),
    (CODEX, "ERROR: Selected model is at capacity. Please try a different model.", "capacity", None),
    (API, "Error: The server is currently overloaded with other requests", "capacity", None),
    (API, "Error: we are currently experiencing high demand", "capacity", None),
    ("embedded", "Error code: 503 - Service Unavailable", "capacity", None),
    ("embedded", "vllm.EngineDeadError: EngineCore encountered an issue", "transport", None),
    (CODEX, "ERROR: stream disconnected before completion: error sending request", "transport", None),
    (CODEX, "exceeded retry limit, last status: 502 Bad Gateway", "transport", None),
    (CLAUDE, "API Error: 500 " + api("api_error", "Internal server error"), "transport", None),
    (CLAUDE, "API Error: Connection error.", "transport", None),
    (API, "curl: (6) Could not resolve host: api.openai.com", "transport", None),
    (API, "httpx.ConnectError: [Errno 111] Connection refused", "transport", None),
    (API, "Error: connect ECONNREFUSED 127.0.0.1:8000", "transport", None),
    *((API, f"Error: status code {status}", "transport", None) for status in (408, 409, 425, 500, 502, 504)),
    *((API, f"Error: status code {status}", "capacity", None) for status in (503, 529)),
    (API, "Error: status code 429", "limit", None),
    # settings
    (CLAUDE, "There's an issue with the selected model (opus-9). It may not exist.", "config", None),
    (CLAUDE, "--dangerously-skip-permissions cannot be used with root/sudo privileges for security", "config", None),
    (CODEX, "Missing environment variable: `OPENAI_API_KEY`.", "config", None),
    (CODEX, "Error: `wire_api = \"chat\"` is no longer supported.", "config", None),
    (CODEX, "Not inside a trusted directory and --skip-git-repo-check was not specified.", "config", None),
    (API, 'Error: 404 {"error": {"message": "x", "type": "NotFoundError", "param": "model", "code": 404}}', "config", None),
    (API, "Error: The model `qwen` does not exist.", "config", None),
    (API, "Error: 403 Project does not have access to model gpt-9", "config", None),
    # the context is full: the work was too large
    (CLAUDE, "API Error: 400 " + api("invalid_request_error", "prompt is too long: 209 tokens > 200 maximum"), "ticket", None),
    (CLAUDE, "Prompt is too long", "ticket", None),
    (API, "Error: This model's maximum context length is 8192 tokens", "ticket", None),
    ("embedded", "Error: The prompt is longer than the maximum model length of 8192.", "ticket", None),
    (MINI, "litellm.ContextWindowExceededError: too much", "ticket", None),
    # the machine
    (API, "bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "host", None),
    (API, "docker: Cannot connect to the Docker daemon", "host", None),
    (API, "Error: ENOSPC: no space left on device, write", "host", None),
]  # fmt: skip
"""Provider, what it prints, the kind, the reset. Every message of the research notes is here."""


@pytest.mark.parametrize(("provider", "text", "kind", "reset_at"), PRINTED)
def test_a_printed_message_is_understood(provider: str, text: str, kind: str, reset_at: datetime | None) -> None:
    """RB8: limits, refused credentials and broken providers or machines burn nothing."""
    fault = classify(ending(f"working…\nThinking about the change.\n{text}\n", provider=provider), NOW)

    assert (fault.kind, fault.reset_at, fault.burns) == (kind, reset_at, kind == "ticket"), fault


def test_no_message_of_the_notes_is_misclassified() -> None:
    """RB8, as one number: over all messages and their kinds, none is wrong."""
    wrong = [
        (text, fault.kind)
        for provider, text, kind, reset_at in PRINTED
        for fault in [classify(ending(text, provider=provider), NOW)]
        if (fault.kind, fault.reset_at) != (kind, reset_at)
    ]

    assert len(PRINTED) >= 90
    assert wrong == []


NOTES = Path(__file__).parents[3] / "shared" / "notes" / "agents.md"
FAMILIES = {
    "limit": {"limit", "money"}, "throttle": {"limit", "capacity", "transport"}, "billing": {"money"}, "auth": {"auth"},
    "config": {"config"}, "context": {"ticket"}, "infra": {"host", "transport"},
}  # fmt: skip
"""Classes of the notes' table, in our kinds: a monthly spend limit is a bill, and a 429 for a minute has a limit's reset."""


def noted() -> list[tuple[str, str]]:
    """Every pattern of the notes' table of failure messages, with its class; tests below and of the clients have the fields."""
    if not NOTES.exists():
        return []
    text = NOTES.read_text()
    table = text[text.index("### 1.4") : text.index("Bodies differ:")].splitlines()
    rows = [line for line in table if re.match(rf"\| ({'|'.join(FAMILIES)}) ", line)]
    found = [(row.split("|")[1].strip(), said) for row in rows for said in re.findall(r"`([^`]+)`", row)]
    return [(family, said) for family, said in found if not re.match(r"\{.*resets_at|error==|retry-after:|x-", said)]


def shown_as(pattern: str) -> re.Pattern[str]:
    """Messages of a pattern: it is a regular expression for some, and has N, M and X for what differs."""
    loose = re.sub(r"\b[NMX]\b", r"\\S+", pattern.replace("\\|", "|")).replace("(TPM", r"\((TPM")
    literal = re.escape(pattern.replace("\\|", "|").removesuffix(" ..."))
    try:
        return re.compile(rf"(?:{loose})|{literal}", re.IGNORECASE)
    except re.error:
        return re.compile(literal, re.IGNORECASE)


@pytest.mark.parametrize(("family", "pattern"), noted() or [pytest.param("", "", marks=pytest.mark.skip("no notes"))])
def test_every_message_of_the_notes_is_understood(family: str, pattern: str) -> None:
    """RB8: each stands among the messages above, or is the code of an event."""
    found = {kind for _, text, kind, _ in PRINTED if shown_as(pattern).search(text.replace("’", "'"))}
    found |= {kind for _, events, kind, _ in EVENTS if shown_as(pattern).search(json.dumps(events))}
    found |= {kind for kind in [CODE_KINDS.get(pattern.lower())] if kind}
    assert found, f"no test has {pattern!r}"
    assert found & FAMILIES[family], found


SURE = (
    "You",
    "API Error: 4",
    "API Error: Rep",
    "ERROR: Sel",
    "This request",
    "Claude",
    "Credit",
    "exceeded retry limit",
)
STRONG = [row for row in PRINTED if row[1].startswith(SURE)]


@pytest.mark.parametrize(("provider", "text", "kind", "reset_at"), STRONG)
def test_an_exact_message_counts_in_spite_of_commits(
    provider: str, text: str, kind: str, reset_at: datetime | None
) -> None:
    """RB8: only ambiguous text is doubted."""
    fault = classify(ending(f"$ git commit -m x\n{text}", provider=provider, commits=3), NOW)

    assert (fault.kind, fault.reset_at) == (kind, reset_at)


EVENTS: list[tuple[str, list[dict[str, Any]], str, datetime | None]] = [
    # Claude Code
    (
        CLAUDE,
        [
            {"type": "system", "subtype": "init", "model": "m"},
            {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": SOON}},
            refused("rate_limit", "You've hit your limit"),
            result("You've hit your limit", 429),
        ],
        "limit",
        at(6),
    ),
    (CLAUDE, [refused("rate_limit"), result("You've hit your limit · resets 6:07am (UTC)", 429)], "limit", at(6, 7)),
    (CLAUDE, [result("API Error: Request rejected (429) · Please try again later.", 429)], "limit", None),
    (CLAUDE, [refused("billing_error"), result("Credit balance is too low", 400)], "money", None),
    (CLAUDE, [refused("invalid_request"), result("Credit balance is too low", 400)], "money", None),
    (CLAUDE, [refused("rate_limit"), result("You've hit your monthly spend limit · resets 3pm", 429)], "money", None),
    *(
        (CLAUDE, [refused(code), result("refused", 401)], "auth", None)
        for code in ("authentication_failed", "oauth_org_not_allowed", "account_on_hold", "verification_required")
    ),
    (CLAUDE, [refused("cloud_credential_error"), result("no credentials")], "auth", None),
    (CLAUDE, [refused("overloaded"), result("Repeated 529 Overloaded errors", 529)], "capacity", None),
    (CLAUDE, [refused("server_error"), result("API Error: 500", 500)], "transport", None),
    (CLAUDE, [refused("unknown"), result("Connection error.")], "transport", None),
    (CLAUDE, [refused("model_not_found"), result("There's an issue with the selected model", 404)], "config", None),
    (CLAUDE, [refused("invalid_request"), result("x", 400, terminal_reason="prompt_too_long")], "ticket", None),
    (CLAUDE, [refused("invalid_request"), result("API Error: 400 image too odd", 400)], "ticket", None),
    (CLAUDE, [result("", subtype="error_max_turns", terminal_reason="max_turns")], "ticket", None),
    (CLAUDE, [result("", subtype="error_max_budget_usd", terminal_reason="budget_exhausted")], "ticket", None),
    (CLAUDE, [{"type": "system", "subtype": "api_retry", "error_status": None, "error": "unknown"}], "transport", None),
    (CLAUDE, [{"type": "system", "subtype": "api_retry", "error_status": 529, "error": "overloaded"}], "capacity", None),
    (CLAUDE, [{"type": "system", "subtype": "api_retry", "error_status": 429, "error": "rate_limit"}], "limit", None),
    # Codex
    (
        CODEX,
        [
            {"type": "error", "message": "Reconnecting... 1/5 (stream disconnected before completion)"},
            {"type": "turn.failed", "error": {"message": "You’ve hit your usage limit. Try again at 6:08 AM."}},
        ],
        "limit",
        at(6, 8),
    ),
    (
        CODEX,
        [{"type": "turn.failed", "error": {"message": "unexpected status 401 Unauthorized: no key, url: x"}}],
        "auth",
        None,
    ),
    (
        CODEX,
        [{"type": "turn.failed", "error": {"message": "exceeded retry limit, last status: 429 Too Many Requests"}}],
        "limit",
        None,
    ),
    (CODEX, [{"type": "turn.failed", "error": {"message": "stream disconnected before completion"}}], "transport", None),
    (
        CODEX,
        [{"type": "turn.failed", "error": {"message": "Quota exceeded. Check your plan and billing details."}}],
        "money",
        None,
    ),
    (
        CODEX,
        [{"type": "turn.failed", "error": {"message": 'x: {"error":{"type":"usage_limit_reached","message":"m",'
                                                     f'"resets_at":{SOON},"resets_in_seconds":9}}}}'}}],
        "limit",
        NOW + timedelta(seconds=9),
    ),
    (CODEX, [{"type": "error", "message": "Reconnecting... 1/5 (connection closed)"}], "transport", None),
    # OpenCode
    (
        OPENCODE,
        [{"type": "error", "error": {"name": "APIError", "data": {"message": "slow down", "statusCode": 429,
                                                                  "responseHeaders": {"Retry-After": "30"}}}}],
        "limit",
        NOW + timedelta(seconds=30),
    ),
    (OPENCODE, [{"type": "error", "error": {"name": "ProviderAuthError", "data": {"message": "no"}}}], "auth", None),
    (OPENCODE, [{"type": "error", "error": {"name": "ContextOverflowError", "data": {"message": "x"}}}], "ticket", None),
    (
        OPENCODE,
        [{"type": "error", "error": {"name": "APIError", "data": {"message": "x", "statusCode": 500}}}],
        "transport",
        None,
    ),
    # mini-swe-agent
    (MINI, [{"info": {"exit_status": "RateLimitError"}}], "limit", None),
    (MINI, [{"info": {"exit_status": "AuthenticationError"}}], "auth", None),
    (MINI, [{"info": {"exit_status": "litellm.exceptions.ServiceUnavailableError"}}], "capacity", None),
    (MINI, [{"info": {"exit_status": "APIConnectionError"}}], "transport", None),
    (MINI, [{"info": {"exit_status": "InternalServerError"}}], "transport", None),
    (MINI, [{"info": {"exit_status": "NotFoundError"}}], "config", None),
    (MINI, [{"exit_status": "LimitsExceeded"}], "ticket", None),
    (MINI, [{"exit_status": "TimeExceeded"}], "ticket", None),
    (MINI, [{"exit_status": "ContextWindowExceededError"}], "ticket", None),
    (
        MINI,
        [{"info": {"exit_status": "RateLimitError", "exception_str": "Error code: 429 {'code': 'insufficient_quota'}"}}],
        "money",
        None,
    ),
    # the error object of an API
    (API, [{"error": {"type": "usage_limit_reached", "message": "m", "resets_at": SOON}}], "limit", at(6)),
    (API, [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}], "capacity", None),
    (API, [{"object": "error", "message": "m", "type": "InternalServerError", "code": 500}], "transport", None),
    (API, [{"error": "Unauthorized"}], "auth", None),
    (
        API,
        [{"type": "error", "error": {"type": "rate_limit_error", "message": "m",
                                     "details": {"error_code": "enforced_spend_limit_reached"}}}],
        "money",
        None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "events", "kind", "reset_at"), EVENTS)
@pytest.mark.parametrize("commits", [0, 2])
def test_an_agents_own_error_fields_decide(
    provider: str, events: list[dict[str, Any]], kind: str, reset_at: datetime | None, commits: int
) -> None:
    """RB8: structured events are believed before exit codes and prose, whatever was committed before."""
    fault = classify(ending("All done!", provider=provider, events=tuple(events), commits=commits), NOW)

    assert (fault.kind, fault.reset_at, fault.burns) == (kind, reset_at, kind == "ticket"), fault


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "rate_limit_event", "rate_limit_info": {"status": "allowed_warning", "resetsAt": SOON}}],
        [{"type": "system", "subtype": "api_retry", "error_status": 429, "error": "rate_limit"}, {"type": "assistant"}],
        [refused("overloaded"), {"type": "assistant", "message": {"content": []}}, {"type": "user"}],
        [{"type": "error", "message": "Reconnecting... 1/5"}, {"type": "turn.completed", "usage": {}}],
        [
            {"type": "error", "message": "Reconnecting... 1/5"},
            {"type": "item.completed", "item": {"type": "file_change"}},
        ],
        [{"type": "item.completed", "item": {"type": "error", "message": "429 rate limit"}}],
        [{"type": "assistant", "message": {"content": [{"type": "text", "text": "You've hit your limit"}]}}],
        [{"type": "item.completed", "item": {"type": "agent_message", "text": "Error: rate limit exceeded (429)"}}],
        [{"type": "result", "subtype": "success", "is_error": False, "result": "The API answers 429 when overloaded"}],
        [{"type": "tool_use", "part": {"output": "429 Too Many Requests", "error": "rate_limit"}}],
        [{"info": [], "exit_status": 3}, {"type": None, "item": "error"}],
        [{"type": ["odd"], "error": 0}],
        [{"type": "result", "is_error": True, "errors": 3, "result": {}, "api_error_status": "429"}],
        [{"type": "error", "error": {"data": [], "name": 4}}],
    ],
)
def test_an_error_that_was_overcome_or_only_talked_about_is_none(events: list[dict[str, Any]]) -> None:
    """RB8: nothing but an error that ended the run excuses it."""
    fault = classify(ending("assert 1 == 2", events=tuple(events)), NOW)

    assert (fault.kind, fault.burns) == ("ticket", True), fault


PYTEST = """\
    def test_the_limit():
>       assert client.get("/").status_code == 429
E       assert 200 == 429
E       openai.RateLimitError: Error code: 429 - rate limit exceeded
tests/test_limit.py:7: AssertionError
FAILED tests/test_limit.py::test_a_rate_limit_answers_429 - assert 200 == 429
ERROR tests/test_limit.py - RateLimitError: too many requests
========================= 1 failed, 12 passed in 3.21s =========================
"""
LOOKALIKES = [
    (2, PYTEST),
    (0, PYTEST),
    (2, "Add a rate limit: more than 10 requests a minute are answered with 429 Too Many Requests."),
    (0, "Add a rate limit: more than 10 requests a minute are answered with 429 Too Many Requests."),
    (0, "The ticket asks for rate limiting with Retry-After: 30, which I could not add."),
    (0, '    if response.status_code == 429:\n        raise RateLimited("usage limit reached")'),
    (0, '+    "You\'ve hit your usage limit. Try again at 6:08 AM.",'),
    (0, '>       assert kind("You\'ve hit your limit · resets 4am") == "limit"'),
    (0, "    You've hit your limit · resets 4am (America/Chicago)"),
    (0, "# You've hit your usage limit: what to do\n1. wait"),
    (0, "You've hit your goal of 90 % coverage."),
    (2, "Error: 429 Too Many Requests\n    at Server.limit (src/limit.js:4:2)"),
    (2, "Error: connect ECONNREFUSED 127.0.0.1:5432"),
    (2, "OSError: [Errno 28] No space left on device"),
    (0, "Error: 503 Service Unavailable\n1 failing\n  Error: retries on rate limit"),
    (
        0,
        "openai.RateLimitError: Error code: 429\nI handled that error in src/client.py now.\nNext: the tests.\nDone?\nNo.",
    ),
    (0, "ERROR: test_overloaded (tests.T)\nRan 3 tests in 0.1s\nFAILED (errors=1)"),
    (2, "● Reconnecting... 1/5\n● edited a.py\n● ran the tests\n● the tests fail\n● giving up"),
    (0, "not ok 4 - answers 401 Unauthorized\n# tests 4\n# fail 1"),
    (0, "Error: the image is 429 pixels wide"),
    (0, ""),
]


@pytest.mark.parametrize(("commits", "text"), LOOKALIKES)
@pytest.mark.parametrize("provider", [CLAUDE, CODEX, "command"])
def test_text_that_only_mentions_a_limit_burns_an_attempt(commits: int, text: str, provider: str) -> None:
    """RB8: the factory works on rate limiting itself, and a run that failed at it failed."""
    fault = classify(ending(text, commits=commits, provider=provider), NOW)

    assert (fault.kind, fault.scope, fault.burns) == ("ticket", "ticket", True), fault


def test_one_agents_message_means_nothing_in_another_ones_output() -> None:
    text = "Not inside a trusted directory"

    assert classify(ending(text, provider=CODEX), NOW).kind == "config"
    assert classify(ending(text, provider=CLAUDE), NOW).kind == "ticket"


def test_ambiguous_text_is_a_limit_only_without_commits() -> None:
    """RB8."""
    text = "editing a.py\nError: 429 Too Many Requests"

    assert classify(ending(text), NOW).kind == "limit"
    assert classify(ending(text, commits=1), NOW).kind == "ticket"


@pytest.mark.parametrize("last", [{"type": "turn.completed"}, {"type": "result", "is_error": False}])
def test_the_closing_words_of_a_run_that_came_to_its_end_are_prose(last: dict[str, Any]) -> None:
    """RB8."""
    assert classify(ending("Error: 429 is what the server must answer", events=(last,)), NOW).kind == "ticket"
    assert classify(ending("Error: rate limit exceeded", events=(last,)), NOW).kind == "ticket"


def test_an_unhandled_exception_of_a_model_client_is_believed_in_spite_of_commits() -> None:
    text = "Traceback (most recent call last):\n  File a.py\nlitellm.RateLimitError: too many requests"

    assert classify(ending(text, commits=1), NOW).kind == "limit"


@pytest.mark.parametrize(
    ("error", "kind", "scope", "burns"),
    [
        (errors.RateLimited("x", at(4)), "limit", "provider", False),
        (errors.QuotaExhausted("x"), "money", "provider", False),
        (errors.BudgetExhausted("x", "ticket"), "budget", "ticket", False),
        (errors.BudgetExhausted("x", "role"), "budget", "ticket", False),
        (errors.BudgetExhausted("x", "day", NOW + timedelta(hours=2)), "budget", "factory", False),
        (errors.BudgetExhausted("x", "month", NOW + timedelta(days=9)), "budget", "factory", False),
        (errors.BudgetExhausted("x", "day", NOW + timedelta(seconds=30)), "budget", "ticket", False),
        (errors.AuthFailed("x"), "auth", "provider", False),
        (errors.CapacityUnavailable("x"), "capacity", "provider", False),
        (errors.Unreachable("x"), "transport", "provider", False),
        (errors.ProviderFault("x"), "transport", "provider", False),
        (errors.BrokenPagination("x"), "transport", "provider", False),
        (errors.UnexpectedStatus("x"), "transport", "provider", False),
        (errors.DiskFull("x"), "host", "node", False),
        (errors.SandboxUnavailable("x"), "host", "node", False),
        (errors.InfraError("x"), "host", "node", False),
        (errors.FencedOff("x"), "cancelled", "ticket", False),
        (errors.NeedsHuman("x"), "question", "ticket", False),
        (errors.ConfigError("x"), "config", "ticket", False),
        (errors.WorkFailed("x"), "ticket", "ticket", True),
        (errors.InvalidOutput("x"), "ticket", "ticket", True),
        (errors.TestsFailed("x"), "ticket", "ticket", True),
        (errors.LimitReached("x"), "ticket", "ticket", True),
        (errors.FactoryError("x"), "ticket", "ticket", True),
    ],
)
@pytest.mark.parametrize("seconds", [0.1, 900.0])
def test_the_class_of_an_exception_decides(
    error: errors.FactoryError, kind: str, scope: str, burns: bool, seconds: float
) -> None:
    """RB8: what the factory's own code raised is believed before anything else, however fast it came."""
    ended = ending("You've hit your limit · resets 6am", error=error, seconds=seconds, exit_code=None)
    fault = classify(ended, NOW)

    assert (fault.kind, fault.scope, fault.burns) == (kind, scope, burns)
    assert fault.reset_at == getattr(error, "reset_at", None)


def test_every_error_of_the_factory_has_a_kind_and_only_failed_work_burns() -> None:
    """RB8: a class that is added later is not forgotten."""
    named = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.FactoryError)
    ]
    for group in named:
        error = errors.BudgetExhausted("x", "day") if group is errors.BudgetExhausted else group("x")
        fault = classify(ending(error=error), NOW)
        assert fault.burns == (issubclass(group, errors.WorkFailed) or group is errors.FactoryError), group


@pytest.mark.parametrize(
    ("known", "kind", "scope"),
    [
        ({"exit_code": 137}, "host", "node"),
        ({"exit_code": -9}, "host", "node"),
        ({"exit_code": None, "signal": 9}, "host", "node"),
        ({"exit_code": None}, "host", "node"),
        ({"exit_code": 127, "text": "sh: 1: codex: not found"}, "config", "node"),
        ({"exit_code": 126}, "config", "node"),
        ({"exit_code": 143}, "cancelled", "ticket"),
        ({"exit_code": -2}, "cancelled", "ticket"),
        ({"exit_code": 137, "killed": "cancelled"}, "cancelled", "ticket"),
        ({"exit_code": 1, "killed": "cancelled", "text": "You've hit your limit"}, "cancelled", "ticket"),
        ({"exit_code": 1, "seconds": 3.0}, "fast-death", "ticket"),
        ({"exit_code": -11, "seconds": 9.9}, "fast-death", "ticket"),
        ({"exit_code": 0, "seconds": 1.0}, "fast-death", "ticket"),
        ({"exit_code": -9, "killed": "stalled"}, "stalled", "ticket"),
    ],
)
def test_a_lost_host_a_stop_and_a_fast_death_burn_nothing(known: dict[str, Any], kind: str, scope: str) -> None:
    """RB8."""
    fault = classify(ending(**known), NOW)

    assert (fault.kind, fault.scope, fault.burns) == (kind, scope, False), fault


@pytest.mark.parametrize(
    "known",
    [
        {"seconds": 10.0},
        {"exit_code": 0},
        {"exit_code": -11},
        {"exit_code": 127, "commits": 1},
        {"exit_code": -9, "killed": "stalled", "text": "edited a.py"},
        {"exit_code": -9, "killed": "timeout"},
        {"exit_code": None, "text": "KeyError: 'plan'"},
    ],
)
def test_what_ran_long_enough_and_names_no_other_cause_burns_an_attempt(known: dict[str, Any]) -> None:
    """RB7, RB8."""
    assert classify(ending(**known), NOW).burns


@pytest.mark.parametrize(
    "text",
    ["Prompt is too long", "litellm.ContextWindowExceededError: x", "Error: maximum context length is 8192 tokens"],
)
def test_a_ticket_that_is_too_large_for_the_model_is_its_own_fault_however_fast(text: str) -> None:
    assert classify(ending(text, seconds=2, provider=CLAUDE), NOW).kind == "ticket"


def test_how_fast_is_fast_can_be_set() -> None:
    assert classify(ending(seconds=20), NOW, fail_fast_seconds=30).kind == "fast-death"
    assert classify(ending(seconds=20), NOW).kind == "ticket"


def test_a_run_that_we_stopped_while_it_waited_for_its_provider_is_the_providers_fault() -> None:
    """RB8: the agents retry for minutes inside, without a word or with one."""
    retry = {"type": "system", "subtype": "api_retry", "error_status": None, "error": "unknown"}

    assert classify(ending(events=(retry,), killed="stalled", exit_code=-9), NOW).kind == "transport"
    assert classify(ending("You've hit your limit · resets 6am", killed="timeout", exit_code=-9), NOW).kind == "limit"


def test_a_reason_is_one_short_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "hunter2hunter2")
    text = (
        "Error: \x1b[31m401\x1b[0m Unauthorized for sk-proj-abcdefghijklmnopqrstuvw and hunter2hunter2\x07 " + "x" * 900
    )

    reason = classify(ending(text), NOW).reason

    assert "sk-proj" not in reason
    assert "hunter2" not in reason
    assert reason.isprintable()
    assert len(reason) <= 300
    assert "401 Unauthorized" in reason


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["You've hit your ", "a.", "{", "[" * 50, "Error: 429 ", "wire_api ", "per ", " \n"])
def test_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))

    classify(ending(text), NOW)
    classify(ending(events=(result(text, 400), {"type": "error", "message": text})), NOW)


def test_failures_wait_longer_each_time_up_to_five_minutes() -> None:
    """RB1."""
    assert [retry_delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 7)] == [10, 20, 40, 80, 160, 300, 300]
    assert retry_delay(10**9) == 300
    assert retry_delay(0) == retry_delay(-5) == 10


def fault(kind: Any, scope: Any = "provider", reset_at: datetime | None = None, burns: bool = False) -> Fault:
    return Fault(kind=kind, scope=scope, burns=burns, reset_at=reset_at, reason="x")


def test_a_provider_rests_until_its_reset() -> None:
    """RB8."""
    assert pause_until(fault("limit", reset_at=at(9)), NOW, 4) == at(9)


@pytest.mark.parametrize(
    ("kind", "scope", "earlier", "seconds"),
    [
        ("limit", "provider", 0, 300),
        ("limit", "provider", 1, 600),
        ("limit", "provider", 4, 3600),
        ("limit", "provider", 10**9, 3600),
        ("auth", "provider", 7, 900),
        ("capacity", "provider", 0, 30),
        ("transport", "provider", 2, 120),
        ("transport", "provider", 10**9, 600),
        ("host", "node", 1, 60),
        ("ticket", "ticket", 0, 0),
        ("fast-death", "ticket", 3, 0),
    ],
)
def test_without_a_reset_a_pause_grows_up_to_a_bound(kind: str, scope: str, earlier: int, seconds: int) -> None:
    """RB8."""
    assert pause_until(fault(kind, scope), NOW, earlier) == NOW + timedelta(seconds=seconds)


def test_a_reset_that_passed_does_not_end_the_pause_at_once() -> None:
    assert pause_until(fault("limit", reset_at=NOW), NOW, 0) == NOW + timedelta(minutes=5)


@pytest.mark.parametrize(("kind", "scope"), [("money", "provider"), ("config", "provider"), ("config", "node")])
def test_what_only_a_person_can_mend_pauses_without_an_end(kind: str, scope: str) -> None:
    assert pause_until(fault(kind, scope), NOW, 3) is None


def test_the_strong_model_comes_after_two_burnt_attempts_and_never_because_of_a_provider() -> None:
    """RB10."""
    counters = Counters()
    for kind, burns in [("limit", False), ("ticket", True), ("host", False), ("auth", False), ("capacity", False)]:
        counters = after(counters, fault(kind, burns=burns))
    assert next_tier(counters.failures, has_strong=True) == "default"

    counters = after(counters, fault("timeout", "ticket", burns=True))
    assert next_tier(counters.failures, has_strong=True) == "strong"
    assert next_tier(counters.failures, has_strong=False) == "default"


def launches(fast: int, slow: int, minutes_ago: float = 5) -> list[Launch]:
    ended_at = NOW - timedelta(minutes=minutes_ago)
    return [Launch(ended_at=ended_at, seconds=2, fast_failure=True)] * fast + [
        Launch(ended_at=ended_at, seconds=900, fast_failure=False)
    ] * slow


@pytest.mark.parametrize(
    ("given", "pauses"),
    [
        (launches(5, 0), True),
        (launches(9, 1), True),
        (launches(8, 2), False),  # not over 80 %
        (launches(4, 1), False),
        (launches(4, 0), False),  # too few to tell
        (launches(50, 0, minutes_ago=31), False),
        (launches(50, 0, minutes_ago=31) + launches(0, 6), False),
        (launches(0, 50, minutes_ago=31) + launches(5, 0), True),
        ([], False),
    ],
)
def test_dispatch_pauses_when_over_the_share_of_a_window_failed_fast(given: list[Launch], pauses: bool) -> None:
    """RB9."""
    reason = should_pause(given, NOW, window_seconds=1800, share=0.8, min_launches=5)

    assert (reason is not None) == pauses


def test_dispatch_says_why_it_paused() -> None:
    """RB9."""
    reason = should_pause(launches(9, 1), NOW, window_seconds=1800, share=0.8, min_launches=5)

    assert reason is not None
    assert reason.startswith("9 of the 10 launches that ended in the last 30 minutes failed at once (more than 80%)")


@pytest.mark.parametrize(
    ("kind", "burns", "moved"),
    [
        ("ticket", True, "failures"),
        ("timeout", True, "failures"),
        ("stalled", True, "failures"),
        ("stalled", False, "infra_faults"),
        *((kind, False, "infra_faults") for kind in ("limit", "money", "auth", "capacity", "transport", "host")),
        ("fast-death", False, "infra_faults"),
        ("config", False, "infra_faults"),
        ("question", False, None),
        ("cancelled", False, None),
    ],
)
def test_a_fault_moves_exactly_one_counter(kind: str, burns: bool, moved: str | None) -> None:
    """RB6."""
    before = Counters(failures=1, continuations=2, revisions=3, ci_fixes=4, conflict_fixes=5, infra_faults=6)
    expected = before.model_dump() | ({moved: getattr(before, moved) + 1} if moved else {})

    assert after(before, fault(kind, "ticket", burns=burns)).model_dump() == expected
