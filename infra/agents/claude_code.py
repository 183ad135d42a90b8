"""Claude Code, driven by `claude -p` with a stream of JSON events.

Measured on 2.1.329: `subtype` says `success` of failed calls, so only `is_error` counts; usage of a single answer in the
stream is not final; a killed run leaves its totals in the session file.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from infra.agents import Activity, Session
from infra.agents.events import Event, Story, items, session_events, table, text, tokens, usd
from infra.agents.program import ENDPOINT, NO_KEY, Launch, Place, ProgramAgent
from infra.llm import Usage

READING_TOOLS = "Read,Grep,Glob"
OAUTH_PREFIX = "sk-ant-oat"
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_MAX_RETRIES": "2",  # ten by default: more than a minute of silence where the network is gone
}


class ClaudeCode(ProgramAgent):
    """`url` is the base URL without `/v1`."""

    program = "claude"
    install = "`npm install --global @anthropic-ai/claude-code`"
    minimum = (2, 1, 300)
    speaks = "anthropic"
    vendor = "https://api.anthropic.com"
    models_path = "/v1/models"
    vendor_hosts = ("api.anthropic.com:443", "platform.claude.com:443", "console.anthropic.com:443", "claude.ai:443")
    login_folder = "~/.claude"
    login_file = ".credentials.json"
    state_file = ".credentials.json"
    resumes = True

    def launch(self, session: Session, place: Place) -> Launch:
        model = ["--model", self.section.model] if self.section.model else []
        money = ["--max-budget-usd", f"{session.max_usd:g}"] if session.max_usd else []
        rights = (
            ["--restricted", "--tools", READING_TOOLS]
            if session.read_only
            else ["--permission-mode", "bypassPermissions", "--disallowedTools", "AskUserQuestion"]
        )
        session_id = ["--resume", session.resume] if session.resume else ["--session-id", str(uuid.uuid4())]
        arguments = [
            "-p", "--output-format", "stream-json", "--verbose", "--max-turns", str(session.max_turns),
            "--strict-mcp-config", *model, *money, *session_id, *rights,
        ]  # fmt: skip
        return Launch(arguments, {"CLAUDE_CONFIG_DIR": place.inside, **QUIET, **self._endpoint()}, session.prompt)

    def _endpoint(self) -> dict[str, str]:
        if self.login() is not None:
            return {}
        small = {"ANTHROPIC_DEFAULT_HAIKU_MODEL": self.section.model} if self.section.url and self.section.model else {}
        return {"ANTHROPIC_BASE_URL": ENDPOINT, "ANTHROPIC_API_KEY": NO_KEY, **small}

    def headers(self, key: str) -> dict[str, str]:
        if key.startswith(OAUTH_PREFIX):
            return {"Authorization": f"Bearer {key}"}
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}

    def story(self, session: Session, place: Place) -> Story:
        return ClaudeStory(place, session.resume)


class ClaudeStory(Story):
    """Tokens come from the `result`, whose `modelUsage` includes subagents and, in a resumed session, what it used before;
    when there is no result, from the answers in the session file."""

    def __init__(self, place: Place, resumed: str | None) -> None:
        super().__init__()
        self._place = place
        self._stated_before = self._stated() if resumed else Usage()
        self._answered_before = self._answered() if resumed else Usage()
        self._answers: set[str] = set()
        self._has_result = False

    def read(self, event: Event) -> Iterator[Activity]:
        match event.get("type"):
            case "system":
                yield from self._system(event)
            case "assistant":
                yield from self._assistant(event)
            case "result":
                yield from self._result(event)

    def _system(self, event: Event) -> Iterator[Activity]:
        self.session_id = text(event.get("session_id")) or self.session_id
        if event.get("subtype") == "api_retry":
            yield Activity(kind="error", text=f"{text(event.get('error'))}, tries again")

    def _assistant(self, event: Event) -> Iterator[Activity]:
        self._answers.add(text(table(event, "message").get("id")))
        self.turns = len(self._answers)
        for part in items(table(event, "message").get("content")):
            if part.get("type") == "text":
                yield from self.say(part.get("text"))
            if part.get("type") == "tool_use":
                asked = table(part, "input")
                yield from self.use_tool(part.get("name"), asked.get("command") or asked.get("file_path"))

    def _result(self, event: Event) -> Iterator[Activity]:
        self._has_result = True
        self.said = text(event.get("result")) or self.said
        self.ended_well = event.get("is_error") is False and event.get("subtype") == "success"
        total = _of_models(event.get("modelUsage"))
        total = total.model_copy(update={"cost_usd": usd(event.get("total_cost_usd"))})
        yield from self._use(_less(total, self._stated_before))

    def close(self, exit_code: int | None) -> Iterator[Activity]:
        if not self._has_result:
            yield from self._use(_less(self._answered(), self._answered_before))

    def _use(self, total: Usage) -> Iterator[Activity]:
        yield from self.use(total.model_copy(update={"calls": len(self._answers)}))

    def _stated(self) -> Usage:
        """The last `cost-state` of the session file, which a run that is killed at once does not write."""
        total = Usage()
        for event in session_events(self._place.host, ".jsonl"):
            if event.get("type") == "cost-state":
                total = _of_models(event.get("modelUsage"))
                total = total.model_copy(update={"cost_usd": usd(event.get("totalCostUSD"))})
        return total

    def _answered(self) -> Usage:
        """Sum over the session file's answers. An answer stands there once for each of its parts, with the same id."""
        answers: dict[str, Usage] = {}
        for event in session_events(self._place.host, ".jsonl"):
            if event.get("type") == "assistant":
                message = table(event, "message")
                answers[text(message.get("id"))] = _of_answer(table(message, "usage"))
        return sum(answers.values(), Usage())


def _of_answer(used: Event) -> Usage:
    cached = tokens(used.get("cache_read_input_tokens"))
    fresh = tokens(used.get("input_tokens")) + tokens(used.get("cache_creation_input_tokens"))
    written = tokens(used.get("output_tokens"))
    return Usage(prompt_tokens=fresh + cached, cached_tokens=cached, completion_tokens=written)


def _of_models(value: Any) -> Usage:
    """Input counts neither what was read from the cache nor what was written to it."""
    total = Usage()
    for model in value.values() if isinstance(value, dict) else ():
        used = table({"model": model}, "model")
        cached = tokens(used.get("cacheReadInputTokens"))
        total += Usage(
            prompt_tokens=tokens(used.get("inputTokens")) + cached + tokens(used.get("cacheCreationInputTokens")),
            cached_tokens=cached,
            completion_tokens=tokens(used.get("outputTokens")),
        )
    return total


def _less(total: Usage, before: Usage) -> Usage:
    return Usage(
        prompt_tokens=max(0, total.prompt_tokens - before.prompt_tokens),
        cached_tokens=max(0, total.cached_tokens - before.cached_tokens),
        completion_tokens=max(0, total.completion_tokens - before.completion_tokens),
        cost_usd=max(0.0, total.cost_usd - before.cost_usd),
    )
