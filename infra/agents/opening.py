"""From settings to a coding agent: the one place that knows which kind is which class."""

from __future__ import annotations

from infra.agents import CodingAgent
from infra.agents.claude_code import ClaudeCode
from infra.agents.codex import Codex
from infra.agents.command import Command
from infra.agents.mini_swe import MiniSwe
from infra.agents.opencode import OpenCode
from infra.agents.program import ProgramAgent
from infra.errors import ConfigError
from infra.settings import Settings

KINDS: dict[str, type[ProgramAgent]] = {
    "claude-code": ClaudeCode,
    "codex": Codex,
    "opencode": OpenCode,
    "mini-swe-agent": MiniSwe,
    "command": Command,
}


def open_agent(settings: Settings, name: str) -> CodingAgent:
    """The agent of this name in `agents`. Nothing is started or looked up. Raises ConfigError when there is none."""
    section = settings.agents.get(name)
    if section is None:
        known = ", ".join(sorted(settings.agents)) or "none"
        raise ConfigError(f"there is no agent {name!r} in `agents` (configured: {known}); correct `roles` or add it")
    return KINDS[section.kind](name, section, settings.root / "run" / "agents" / name)
