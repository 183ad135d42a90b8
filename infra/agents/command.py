"""Any agent that is a shell command: it reads the task from stdin and edits the files in its working directory.

Exit code 0 is its word that it came to an end; there is nothing else it could say. Its tokens are unknown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from infra.agents import Activity, Session
from infra.agents.events import Story
from infra.agents.program import ENDPOINT, NO_KEY, Launch, Place, ProgramAgent
from infra.egress import Egress
from infra.errors import ConfigError
from infra.sandbox import Sandbox


class Command(ProgramAgent):
    """`program` is the shell command. With `url` or `key` it finds the endpoint in `OPENAI_BASE_URL`."""

    program = "/bin/sh"
    install = "correct its shell command"
    minimum = (0, 0, 0)
    vendor = "https://api.openai.com/v1"

    def find(self) -> Path:
        if not (self.section.program or "").strip():
            raise ConfigError(f"the agent {self.name!r} has no command: set `agents.{self.name}.program`")
        return Path(self.program)

    async def check(self, sandbox: Sandbox, worktree: Path) -> str:
        """Whether its first word is a program in the sandbox. Nothing of it is run."""
        self.find()
        word = next(iter(shlex.split(self.section.program or "")), "")
        done = await sandbox.run(["/bin/sh", "-c", 'command -v "$1"', "sh", word], worktree=worktree)
        if done.exit_code:
            raise ConfigError(
                f"the agent {self.name!r} begins with {word!r}, which is no program in the sandbox; correct "
                f"`agents.{self.name}.program`"
            )
        return f"command {word!r}"

    def launch(self, session: Session, place: Place) -> Launch:
        endpoint = {"OPENAI_BASE_URL": ENDPOINT, "OPENAI_API_KEY": NO_KEY} if self.egress().upstreams else {}
        model = {"MODEL": self.section.model} if self.section.model else {}
        return Launch(["-c", self.section.program or ""], {**endpoint, **model}, session.prompt)

    def egress(self) -> Egress:
        if self.section.url is None and self.section.key is None:
            return Egress(hosts=self.section.hosts)
        return super().egress()

    def story(self, session: Session, place: Place) -> Story:
        return CommandStory()


class CommandStory(Story):
    """All it prints is output, also what looks like an event."""

    plain = True

    def close(self, exit_code: int | None) -> Iterator[Activity]:
        self.ended_well = exit_code == 0
        yield from ()
