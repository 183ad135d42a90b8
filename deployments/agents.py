"""`darkfactory agents`: the coding agents of factory.yaml, and whether each is installed, of a known version and logged in."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from rich.table import Table
from rich.text import Text

from deployments.tables import table_of
from infra.agents.opening import open_agent
from infra.errors import FactoryError
from infra.llm import Frozen
from infra.sandbox import Sandbox, open_sandbox
from infra.sections import RoleSection
from infra.settings import Settings


class AgentState(Frozen):
    """One agent. `exit_code` is 0 when it can work, else that of the error which `message` tells. `coder`: it codes."""

    name: str
    kind: str
    coder: bool
    message: str
    exit_code: int = 0


def check_agents(settings: Settings) -> list[AgentState]:
    """Check all of them, side by side. What was fine is not looked at again for ten minutes. Raises SandboxUnavailable."""
    return asyncio.run(_check_all(settings))


async def _check_all(settings: Settings) -> list[AgentState]:
    sandbox = open_sandbox(settings)
    return list(await asyncio.gather(*(_check(settings, name, sandbox) for name in settings.agents)))


async def _check(settings: Settings, name: str, sandbox: Sandbox) -> AgentState:
    message, exit_code = "", 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            message = await open_agent(settings, name).check(sandbox, Path(folder).resolve())
        except FactoryError as error:
            message, exit_code = str(error), error.exit_code
    coder = settings.roles.get("coder", RoleSection()).agent == name
    return AgentState(name=name, kind=settings.agents[name].kind, coder=coder, message=message, exit_code=exit_code)


def agents_table(found: list[AgentState]) -> Table:
    table = table_of("", "agent", "kind", "role", "")
    for state in found:
        mark = Text("PROBLEM", style="bold red") if state.exit_code else Text("ok", style="green")
        table.add_row(mark, *map(Text, (state.name, state.kind, "coder" if state.coder else "", state.message)))
    return table
