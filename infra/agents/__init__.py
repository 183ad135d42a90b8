"""Whole coding agents that other people wrote: the nouns and the one protocol. One file per agent.

An agent works in a worktree inside the sandbox. Nothing is retried and nothing is judged here: what it printed comes
back as it was, and `tasks.failures` decides whose fault an ending was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from infra.llm import Frozen, Usage
from infra.sandbox import Bind, Sandbox

MAX_EVENTS = 400
"""Events kept of one session: the first and the last ones; usage is counted over all of them."""


class Session(Frozen):
    """What an agent is asked to do. `read_only`: it may look, not write. `resume` is the session id of an earlier run."""

    prompt: str
    max_seconds: float = Field(gt=0)
    max_turns: int = Field(default=100, ge=1)
    max_usd: float | None = Field(default=None, gt=0)
    read_only: bool = False
    resume: str | None = None


class Activity(Frozen):
    """One thing an agent did, for progress. `usage` is what is known to be new since the last activity (a delta)."""

    kind: Literal["started", "said", "tool", "error", "usage"]
    text: str = ""
    usage: Usage = Usage()


class Report(Frozen):
    """How a session ended. `finished`: the agent itself says it came to an end; only the diff says whether it did anything.

    `events` are its structured events in order, bounded by `MAX_EVENTS`; `output` is the tail of what it printed besides;
    `ran_out` names our own limit that ended it. `usage` has the cost in USD where agent or price list tell it.
    """

    finished: bool
    said: str = ""
    session_id: str | None = None
    usage: Usage = Usage()
    tool_calls: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    events: tuple[dict[str, Any], ...] = ()
    output: str = ""
    ran_out: Literal["time", "output", "turns", "usd"] | None = None


class CodingAgent(Protocol):
    """One configured agent."""

    name: str
    """Its name in factory.yaml."""
    provider: str
    """Who answers its calls, as pauses name it: the kind, and the host where the endpoint is not the vendor's own."""

    async def check(self, sandbox: Sandbox, worktree: Path) -> str:
        """Is the program there, of a known version and logged in? At most one tiny call. Returns one line for people.

        Raises ConfigError (not installed, wrong version), AuthFailed, or what a model call raises.
        """
        ...

    async def run(
        self,
        session: Session,
        *,
        worktree: Path,
        sandbox: Sandbox,
        binds: tuple[Bind, ...] = (),
        on_activity: Callable[[Activity], None] = lambda _: None,
    ) -> Report:
        """Let it work in the worktree until it ends or a limit is hit. Cancelling ends all its processes.

        Raises SandboxUnavailable, DiskFull, ConfigError (the program cannot be started).
        """
        ...
