"""OpenCode, driven by `opencode run --format json`.

Measured on 1.18.33: it takes about ten seconds to start; `input` excludes what was read from the cache; a 429 without
a time to wait is tried again for ever and in silence, which only the session's time limit ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from infra.agents import Activity, Session
from infra.agents.events import Event, Story, table, text, tokens, usd
from infra.agents.program import ENDPOINT, NO_KEY, Launch, Place, ProgramAgent
from infra.llm import Usage

PROVIDER = "darkfactory"


class OpenCode(ProgramAgent):
    """`url` is a base URL with `/v1` that speaks OpenAI's chat completions. With a login of its own `model` is
    `provider/model`."""

    program = "opencode"
    install = "`npm install --global opencode-ai`"
    minimum = (1, 18, 0)
    vendor = "https://api.openai.com/v1"
    vendor_hosts = ("api.anthropic.com:443", "api.openai.com:443", "opencode.ai:443", "models.dev:443")
    login_folder = "~/.local/share/opencode"
    login_file = "auth.json"
    state_file = "data/opencode/auth.json"
    resumes = True

    def launch(self, session: Session, place: Place) -> Launch:
        own = self.login() is not None
        model = self.section.model if own else f"{PROVIDER}/{self._model()}"
        arguments = [
            "run", "--format", "json", "--auto", "--title", "darkfactory", *(["-m", model] if model else []),
            *(["--agent", "plan"] if session.read_only else []),
            *(["--session", session.resume] if session.resume else []),
        ]  # fmt: skip
        folders = {
            f"XDG_{name.upper()}_HOME": f"{place.inside}/{name}" for name in ("data", "config", "cache", "state")
        }
        switches = dict.fromkeys(("OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_LSP_DOWNLOAD"), "1")  # fmt: skip
        config = {} if own else {"OPENCODE_CONFIG_CONTENT": json.dumps(self._config())}
        return Launch(arguments, {**folders, **switches, **config}, session.prompt)

    def _model(self) -> str:
        return self.section.model or "model"

    def _config(self) -> dict[str, object]:
        """One provider: the gateway. Titles and summaries are asked of the same model."""
        options = {"baseURL": ENDPOINT, "apiKey": NO_KEY}
        provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {self._model(): {}}}
        name = f"{PROVIDER}/{self._model()}"
        return {"provider": {PROVIDER: provider}, "model": name, "small_model": name, "share": "disabled"}

    def story(self, session: Session, place: Place) -> Story:
        return OpenCodeStory()


class OpenCodeStory(Story):
    """Every `step_finish` has the tokens of one call; a reason other than `tool-calls` is the end."""

    def read(self, event: Event) -> Iterator[Activity]:
        self.session_id = text(event.get("sessionID")) or self.session_id
        part = table(event, "part")
        match event.get("type"):
            case "text":
                yield from self.say(part.get("text"))
            case "tool_use":
                asked = table(part, "state", "input")
                yield from self.use_tool(part.get("tool"), asked.get("command") or asked.get("filePath"))
            case "step_finish":
                yield from self._step(part)
            case "error":
                self.ended_well = False
                error = table(event, "error")
                said = text(table(error, "data").get("message")) or text(error.get("name"))
                yield Activity(kind="error", text=said[:200])

    def _step(self, part: Event) -> Iterator[Activity]:
        self.turns += 1
        self.ended_well = part.get("reason") == "stop"
        used, cache = table(part, "tokens"), table(part, "tokens", "cache")
        cached = tokens(cache.get("read"))
        step = Usage(
            prompt_tokens=tokens(used.get("input")) + cached + tokens(cache.get("write")),
            cached_tokens=cached,
            completion_tokens=tokens(used.get("output")) + tokens(used.get("reasoning")),
            calls=1,
            cost_usd=usd(part.get("cost")),
        )
        yield from self.use(self.usage + step)
