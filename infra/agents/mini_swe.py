"""mini-swe-agent, with commands in the text of its answers, which needs no tool calls of the model.

It prints nothing for programs: status and tokens are read from the trajectory that it saves after each step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from infra.agents import Activity, Session
from infra.agents.events import Event, Story, bounded, items, read_session_file, table, text, tokens, usd
from infra.agents.program import ENDPOINT, NO_KEY, Launch, Place, ProgramAgent
from infra.llm import Usage

TRAJECTORY = "traj.json"
ANSWER_TOKENS = 4096
FIXED = {
    "MSWEA_CONFIGURED": "true",
    "MSWEA_COST_TRACKING": "ignore_errors",
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "3",  # ten by default: minutes of waiting inside
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else every start waits for a download
}


class MiniSwe(ProgramAgent):
    """`url` is a base URL with `/v1` that speaks OpenAI's chat completions."""

    program = "mini"
    install = "`pip install mini-swe-agent` in an environment of its own"
    minimum = (2, 4, 0)
    vendor = "https://api.openai.com/v1"

    def version_command(self, program: Path) -> list[str]:
        return [str(program), "--help"]  # its first line; there is no --version

    def launch(self, session: Session, place: Place) -> Launch:
        """Task and settings go in by a file: an argument may have 128 KiB, and a file needs no quoting."""
        settings = {
            "run": {"task": session.prompt},
            "agent": {"step_limit": session.max_turns, "wall_time_limit_seconds": int(session.max_seconds) + 60},
            "model": {"model_kwargs": {"temperature": 0, "max_tokens": ANSWER_TOKENS}},
        }
        (place.host / "run.yaml").write_text(json.dumps(settings))  # JSON is YAML
        arguments = [
            "-m", f"openai/{self.section.model or 'model'}", "--model-class", "litellm_textbased",
            "-c", "mini_textbased.yaml", "-c", f"{place.inside}/run.yaml",
            "-y", "--exit-immediately", "-l", f"{session.max_usd or 0:g}", "-o", f"{place.inside}/{TRAJECTORY}",
        ]  # fmt: skip
        environment = {"OPENAI_API_BASE": ENDPOINT, "OPENAI_API_KEY": NO_KEY, "MSWEA_GLOBAL_CONFIG_DIR": place.inside}
        return Launch(arguments, {**FIXED, **environment})

    def story(self, session: Session, place: Place) -> Story:
        return MiniStory(place)


class MiniStory(Story):
    """Told at the end, by the trajectory. Its `info` is the one event: `tasks.failures` reads the exit status there."""

    plain = True

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def close(self, exit_code: int | None) -> Iterator[Activity]:
        trajectory = read_trajectory(self._place.host / TRAJECTORY)
        info = table(trajectory, "info")
        self.ended_well = info.get("exit_status") == "Submitted"
        messages = items(trajectory.get("messages"))
        if info.get("exit_status"):
            self.last_event = {"info": bounded(_why(info, messages))}
        answers = [message for message in messages if table(message, "extra", "response")]
        self.turns = self.tool_calls = len(answers)
        yield from self.say(text(answers[-1].get("content")) if answers else "")
        total = sum((_used(table(answer, "extra", "response", "usage")) for answer in answers), Usage())
        cost = usd(table(info, "model_stats").get("instance_cost"))
        yield from self.use(total.model_copy(update={"cost_usd": cost}))


def read_trajectory(path: Path) -> Event:
    """The whole trajectory; empty when there is none or an agent wrote something else there."""
    try:
        found = json.loads(read_session_file(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _why(info: Event, messages: list[Event]) -> Event:
    """How it ended; the words of an exception stand in the last message."""
    last = messages[-1] if messages else {}
    said = {"exception_str": text(last.get("content"))} if last.get("role") == "exit" else {}
    return {name: value for name, value in info.items() if name != "config"} | said


def _used(usage: Event) -> Usage:
    return Usage(
        prompt_tokens=tokens(usage.get("prompt_tokens")),
        cached_tokens=tokens(table(usage, "prompt_tokens_details").get("cached_tokens")),
        completion_tokens=tokens(usage.get("completion_tokens")),
        calls=1,
    )
