"""What a role may do in one run: one table, narrowed by the repository's policy. Whatever a grant does not name is refused
by the `Toolbox` (`tasks.agent`), whole agents are started with its limits, and people see it as an artifact.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import model_validator

from infra.git import covers
from infra.sections import AgentSection
from tasks import paper, services
from tasks.models import Frozen, Job, Policy, WorkUnit
from tasks.questions import may_ask

Role = Literal["architect", "coder", "tester", "auditor", "reviewer", "judge", "scribe"]
Network = Literal["none", "model"]

ASK = "ask_human"
RECALL = "recall"
LOOKING_UP = frozenset({"find_symbol", "search_code"})
READING = LOOKING_UP | {"read_file", "search", "list_files"}
WRITING = frozenset({"edit_file", "write_file"})
COMMANDS = frozenset({"run", "run_tests"})
EDITING = READING | WRITING | COMMANDS | {ASK, RECALL}

EVERYTHING = ("*",)
TEST_PATHS = tuple(
    pattern
    for name in ("tests/*", "test/*", "__tests__/*", "spec/*", "test_*", "*_test.*", "*.test.*", "*.spec.*", "conftest.py")
    for pattern in (name, f"*/{name}")
)  # fmt: skip
"""The globs of `infra.test_runners.is_test_path`, as far as globs go."""


class Grant(Frozen):
    """What one role may do in one run. Globs as in `fnmatch`: `*` also matches slashes.

    `tools` are names of the toolbox; `protected` are never written, whatever `writable` says. `network` is what a process
    in the sandbox may reach (`model`: only its model endpoint, at `network_hosts`). What commands write is not held back
    by the globs: a role that may run them is collected by what it wrote with tools, or judged by its whole diff.
    """

    role: Role
    tools: frozenset[str]
    writable: tuple[str, ...] = ()
    readable: tuple[str, ...] = EVERYTHING
    protected: tuple[str, ...] = ()
    network: Network = "none"
    network_hosts: tuple[str, ...] = ()
    external_agent: bool = False
    """A whole agent of the section `agents` may do this role's work."""
    unit: str = ""

    @model_validator(mode="after")
    def _holds_together(self) -> Grant:
        if self.tools & COMMANDS and self.readable != EVERYTHING:
            raise ValueError(
                f"a command reads the whole checkout, so {self.role!r} cannot run one and read only a part"
            )
        if self.network_hosts and self.network == "none":
            raise ValueError(f"{self.role!r} has no network, so it has no hosts")
        return self

    @property
    def id(self) -> str:
        """The same for the same permissions, in every run."""
        said = self.model_dump_json(exclude={"tools"}) + " ".join(sorted(self.tools))
        return f"{self.role}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    @property
    def read_only(self) -> bool:
        """It changes nothing, also not by a command."""
        return not (self.tools & (WRITING | COMMANDS))

    @property
    def may_ask_human(self) -> bool:
        return ASK in self.tools

    def may_read(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, glob) for glob in self.readable)

    def may_write(self, path: str) -> bool:
        allowed = any(fnmatch.fnmatchcase(path, glob) for glob in self.writable)
        return allowed and not any(covers(pattern, path) for pattern in self.protected)


_TABLE: Mapping[Role, Grant] = {
    grant.role: grant
    for grant in (
        Grant(role="architect", tools=READING),
        Grant(role="coder", tools=EDITING, writable=EVERYTHING, network="model", external_agent=True),
        Grant(role="tester", tools=READING | WRITING | COMMANDS, writable=TEST_PATHS),
        Grant(role="auditor", tools=READING),
        Grant(role="reviewer", tools=READING),
        Grant(role="judge", tools=READING),
        Grant(role="scribe", tools=frozenset()),
    )
}
"""The most that each role may ever do."""


def grant_for(
    job: Job, role: Role, policy: Policy, unit: WorkUnit | None = None, agent: AgentSection | None = None
) -> Grant:
    """The grant of a role in this run: its row of the table, without what the repository protects.

    `agent` is the whole agent that is to do the work; only with one does the network open, to its hosts alone. A role
    whose row allows none gets no hosts. Nobody asks people on a ticket that has asked often enough (SM8).
    """
    row = _TABLE[role]
    outside = agent is not None and row.external_agent
    narrowed = {
        "tools": row.tools if may_ask(job.claim) else row.tools - {ASK},
        "protected": policy.protected_paths,
        "unit": f"{job.ticket.key} {unit.id}" if unit else job.ticket.key,
        "network": row.network if outside else "none",
        "network_hosts": _hosts(agent) if agent is not None and outside else (),
    }
    return Grant.model_validate(row.model_dump() | narrowed)


def _hosts(agent: AgentSection) -> tuple[str, ...]:
    """`host:port` of the agent's model endpoint, where it is configured, and of what else its section names."""
    found = urlsplit(agent.url or "")
    port = found.port or {"https": 443, "http": 80}.get(found.scheme)
    return (*((f"{found.hostname}:{port}",) if found.hostname and port else ()), *agent.hosts)


async def leave_grants(job: Job, policy: Policy) -> None:
    """The sheet that shows people what every role of this run may do."""
    rows = [_row(grant_for(job, role, policy)) for role in _TABLE]
    head = ["| grant | tools | may write | network | asks people | whole agent |", "|---|---|---|---|---|---|"]
    protected = ", ".join(f"`{pattern}`" for pattern in policy.protected_paths) or "nothing"
    await paper.leave(job, "grants", "\n".join([*head, *rows, "", f"Protected from all: {protected}."]))


def _row(grant: Grant) -> str:
    tools = ", ".join(sorted(grant.tools)) or "none"
    writes = "nothing" if grant.read_only else ", ".join(f"`{glob}`" for glob in grant.writable[::2]) or "nothing"
    answers = ["yes" if each else "no" for each in (grant.may_ask_human, grant.external_agent)]
    return f"| {grant.id} | {tools} | {writes} | {grant.network} | {answers[0]} | {answers[1]} |"


def note_grant(job: Job, grant: Grant) -> None:
    """Write into the ledger what a role was given before it begins."""
    said = grant.model_dump(mode="json") | {"tools": sorted(grant.tools)}
    services.ledger(job.ticket.board).record_event(job.attempt_id, job.ticket.key, "grant", grant.id, said)
