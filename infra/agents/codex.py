"""Codex, driven by `codex exec --json`.

Measured on 0.169.0: its own sandbox inside ours makes every command fail while the run still ends well, so it is switched
off; it refuses a CODEX_HOME below /tmp; `error` events tell of tries that go on, only `turn.completed` is a good end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from infra.agents import Activity, Session
from infra.agents.events import Event, Story, session_events, table, text, tokens
from infra.agents.program import ENDPOINT, NO_KEY, Launch, Place, ProgramAgent
from infra.llm import Usage

TOOLS = frozenset({"command_execution", "file_change", "mcp_tool_call", "web_search"})


class Codex(ProgramAgent):
    """`url` is a base URL with `/v1` that speaks OpenAI's responses; codex knows no other protocol."""

    program = "codex"
    install = "`npm install --global @openai/codex`"
    minimum = (0, 169, 0)
    vendor = "https://api.openai.com/v1"
    vendor_hosts = ("chatgpt.com:443", "auth.openai.com:443", "api.openai.com:443")
    login_folder = "~/.codex"
    login_file = "auth.json"
    state_file = "auth.json"
    resumes = True

    def launch(self, session: Session, place: Place) -> Launch:
        model = ["-m", self.section.model] if self.section.model else []
        options = [
            "--json",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            *model,
            *self._provider(),
        ]
        arguments = ["exec", *options, *(["resume", session.resume] if session.resume else []), "-"]
        return Launch(arguments, {"CODEX_HOME": place.inside, "DARKFACTORY_KEY": NO_KEY}, session.prompt)

    def _provider(self) -> list[str]:
        if self.login() is not None:
            return []
        table = {"name": "darkfactory", "base_url": ENDPOINT, "env_key": "DARKFACTORY_KEY", "wire_api": "responses"}
        fields = [*(f"{name}={json.dumps(value)}" for name, value in table.items()), "request_max_retries=1", "stream_max_retries=1"]  # fmt: skip
        return ["-c", "model_provider=darkfactory", "-c", f"model_providers.darkfactory={{{', '.join(fields)}}}"]

    def story(self, session: Session, place: Place) -> Story:
        return CodexStory(place)


class CodexStory(Story):
    """Tokens are the sum of the rollout's `last_token_usage`: its totals, and `turn.completed` of a resumed thread, count
    what earlier runs used."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._before = self._rollout()

    def read(self, event: Event) -> Iterator[Activity]:
        match event.get("type"):
            case "thread.started":
                self.session_id = text(event.get("thread_id"))
            case "item.completed":
                yield from self._item(table(event, "item"))
            case "turn.completed":
                self.ended_well = True
            case "turn.failed":
                self.ended_well = False
                yield Activity(kind="error", text=text(table(event, "error").get("message"))[:200])
            case "error":
                yield Activity(kind="error", text=text(event.get("message"))[:200])

    def _item(self, item: Event) -> Iterator[Activity]:
        if item.get("type") == "agent_message":
            yield from self.say(item.get("text"))
        if item.get("type") in TOOLS:
            self.turns += 1
            yield from self.use_tool(item.get("type"), item.get("command"))

    def close(self, exit_code: int | None) -> Iterator[Activity]:
        total, before = self._rollout(), self._before
        yield from self.use(
            Usage(
                prompt_tokens=total.prompt_tokens - before.prompt_tokens,
                cached_tokens=total.cached_tokens - before.cached_tokens,
                completion_tokens=total.completion_tokens - before.completion_tokens,
                calls=total.calls - before.calls,
            )
        )

    def _rollout(self) -> Usage:
        """The same count is written again whenever limits are told, so one counts when the total moved."""
        total, seen = Usage(), None
        for event in session_events(self._place.host, ".jsonl"):
            info = table(event, "payload", "info")
            if table(event, "payload").get("type") != "token_count" or info.get("total_token_usage") in (None, seen):
                continue
            seen = info.get("total_token_usage")
            last = table(info, "last_token_usage")
            total += Usage(
                prompt_tokens=tokens(last.get("input_tokens")),
                cached_tokens=tokens(last.get("cached_input_tokens")),
                completion_tokens=tokens(last.get("output_tokens")),
                calls=1,
            )
        return total
