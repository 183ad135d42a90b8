"""The sections of `factory.yaml`: boards, repositories, models, agents, roles, budgets, dispatch, notifications, webhooks.

Secrets stand in the file only as `$NAME`, read from the environment (CF4).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from infra.chores import CHORES, checked_cron
from infra.redaction import remember

_may_miss: ContextVar[bool] = ContextVar("may_miss", default=False)


@contextmanager
def secrets_may_miss() -> Iterator[None]:
    """Inside, a variable that is not set makes an empty secret instead of an error: for commands that use none."""
    token = _may_miss.set(True)
    try:
        yield
    finally:
        _may_miss.reset(token)


def _expand(value: Any) -> Any:
    """`$NAME` is the environment's NAME. Nothing else reads the environment, and an empty secret is a missing one."""
    if not isinstance(value, str) or not (value.startswith("$") or not value.strip()):
        return value
    if not value.strip():
        raise ValueError("an empty secret is a missing one; give it a value or remove it")
    named = re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", value)
    if named is None:
        raise ValueError("this is neither a secret nor `$NAME`; write `$` and the variable's name, without braces")
    found = os.environ.get(named[1], "").strip()
    if not found and not _may_miss.get():
        raise ValueError(f"the environment variable {named[1]} is not set or empty; set it or remove this line")
    return found


def _masked(secret: SecretStr) -> SecretStr:
    remember(secret.get_secret_value())
    return secret


Secret = Annotated[SecretStr, BeforeValidator(_expand), AfterValidator(_masked)]


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)


Secrets = Annotated[tuple[Secret, ...], BeforeValidator(_several)]
"""One secret, or a list of them."""

HostPort = Annotated[str, Field(pattern=r"^((\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")]
"""`host:port`, `*.domain:port` (names below the domain, not itself), `address:port` or `[v6 address]:port`."""


class Section(BaseModel):
    """Unknown names are errors, so that a typo is found at start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class States(Section):
    """A board's words for where a ticket stands. `queue` is in the order in which people fill it; `closed` adds to what the
    board itself counts as finished."""

    queue: tuple[str, ...] = ("todo", "agent queue")
    working: str = "in progress"
    review: str = "in review"
    rejected: str = "rejected"
    parked: str = "needs human"
    closed: tuple[str, ...] = ("done", "closed", "cancelled", "canceled", "merged")

    @model_validator(mode="after")
    def _queue_can_be_worked_off(self) -> Self:
        """Another overlap is allowed: a claim tells a ticket that waits from one that is at work, or was worked on."""
        if not any(state.strip() for state in self.queue):
            raise ValueError("`queue` names no state, so no ticket would ever be worked on; name one")
        closed = {state.casefold() for state in self.closed}
        if ended := [state for state in self.queue if state.casefold() in closed]:
            raise ValueError(
                f"{ended[0]!r} is of the `queue` and `closed`, so its tickets would never be worked on; choose one"
            )
        return self


class AnyBoard(Section):
    states: States = States()
    required_labels: tuple[str, ...] = ()
    """All of them must be on a ticket (compared without case and spaces). A blank one matches nothing (SM3)."""
    allowed_authors: tuple[str, ...] = ()
    """Only tickets by these people are worked on; empty: everybody's."""
    trusted_authors: tuple[str, ...] = ()
    """Whose replies answer a question of the factory; empty: the ticket's author and `allowed_authors`."""
    repository: str | None = None
    """The configured repository of all tickets of this board that do not say otherwise."""


class FolderBoardSection(AnyBoard):
    kind: Literal["folder"] = "folder"
    path: Path


class GitHubBoardSection(AnyBoard):
    """Issues of one GitHub repository. A state is a label with the state's name; closed is closed."""

    kind: Literal["github"]
    project: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name`."""
    token: Secret
    key_prefix: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_.]*$")
    """Ticket keys are `<prefix>-<number>`; None: the repository's name."""
    url: str = "https://api.github.com"


class LinearBoardSection(AnyBoard):
    """Issues of one Linear team."""

    kind: Literal["linear"]
    team: str = Field(pattern=r"^[A-Z][A-Z0-9]*$")
    token: Secret
    url: str = "https://api.linear.app/graphql"


class JiraBoardSection(AnyBoard):
    """Issues of one Jira Cloud project."""

    kind: Literal["jira"]
    project: str = Field(pattern=r"^[A-Z][A-Z0-9_]+$")
    email: str
    token: Secret
    issue_type: str = "Task"
    url: str
    """`https://SITE.atlassian.net`."""


BoardSection = Annotated[
    FolderBoardSection | GitHubBoardSection | LinearBoardSection | JiraBoardSection, Field(discriminator="kind")
]


class GitHubForgeSection(Section):
    """Where a repository's pull requests are opened."""

    project: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    token: Secret
    url: str = "https://api.github.com"


class StewardSection(Section):
    """How the factory looks after the pull requests it opened in a repository (T15)."""

    enabled: bool = True
    every_seconds: float = Field(default=600, ge=60)
    max_ci_fixes: int = Field(default=2, ge=0)
    max_review_rounds: int = Field(default=3, ge=0)
    max_conflict_fixes: int = Field(default=2, ge=0)
    qa: str | None = None
    """Shell command whose output and files are attached to the pull request as proof; run in the sandbox."""
    qa_artifacts: tuple[str, ...] = ()
    """Glob patterns of the files that the command leaves as proof."""
    merge: Literal["never", "when-green", "when-approved"] = "never"


class ActionsSection(Section):
    """GitHub Actions as compute (A7): a repository that holds the shipped workflow, and how much of it may be used."""

    project: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name` of the repository whose runners are used."""
    token: Secret
    workflow: str = "darkfactory-unit.yml"
    ref: str = "main"
    model: str = "openai/openai/gpt-4.1-mini"
    """What the runner's agent asks, by the GitHub Models API."""
    context_tokens: int = Field(default=8000, ge=4000)
    """Longest request that this model takes there: GitHub's free tier is far below the model's own."""
    parallel: int = Field(default=8, ge=1, le=20)
    minutes_per_month: int = Field(default=2000, ge=0)
    requests_per_day: int = Field(default=150, ge=0)
    url: str = "https://api.github.com"


class OperationsSection(Section):
    """What operations on a repository (L3) may reach beyond a checkout of it: nothing that is not named here."""

    hosts: tuple[HostPort, ...] = ()
    """`host:port` for http and https, by a proxy that the environment names."""
    folders: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], Path] = {}
    """Folders of this machine that may be changed; a command finds each by the variable of its name."""
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], Secret] = {}
    """Values that an approved playbook may name; a command finds each by the variable of its name."""
    agent: bool = False
    """A model that works an operation without a playbook may use hosts and folders, too; never secrets."""


class RepositorySection(Section):
    """A repository the factory may work on. `remote` is where branches are pushed; None: a bare one is made in home.

    `aliases` and `keywords` route tickets to it (I3); `labels` are what a node must offer to work on it (I10).
    """

    path: Path
    remote: str | None = None
    base_branch: str | None = None
    github: GitHubForgeSection | None = None
    """None: pull requests are files in home."""
    aliases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    max_running: int | None = Field(default=None, ge=1)
    public: bool = False
    """Its code may be shown to models of `trust: public`."""
    steward: StewardSection = StewardSection()
    actions: ActionsSection | None = None
    """Coders may run on GitHub Actions; None: never."""
    operations: OperationsSection = OperationsSection()
    corpus: bool = True
    """Its runs may become training examples."""


class DispatchSection(Section):
    """How tickets are handed to nodes. Times in seconds."""

    every_seconds: float = Field(default=120, ge=10)
    max_running: int = Field(default=50, ge=1)
    max_running_by_state: dict[str, int] = {}
    lease_seconds: float = Field(default=120, ge=10)
    max_attempts: int = Field(default=3, ge=1)
    max_continuations: int = Field(default=5, ge=0)
    batch: int = Field(default=1, ge=1, le=4)
    """Small tickets of one repository in one session (T13)."""
    stall_seconds: float = 300
    """Silence after which a run is killed and retried; 0 or less: never (RC1)."""
    session_seconds: float = Field(default=7200, gt=0)
    """Longest run of one ticket (RC2)."""
    sweep_seconds: float = Field(default=1800, gt=0)
    """Work that is stuck longer than this is swept by the janitor (I13)."""
    fail_fast_seconds: float = 10
    fail_fast_share: float = Field(default=0.8, gt=0, le=1)
    fail_fast_window_seconds: float = Field(default=1800, gt=0)
    fail_fast_min_launches: int = Field(default=5, ge=2)


class NotifySection(Section):
    """Where the factory tells people that it paused, parked or found something wrong."""

    slack_webhook: Secret | None = None
    webhook: str | None = None


class WebhooksSection(Section):
    """Secrets of the receivers of `darkfactory up`; a service without one is refused. With several, any may have signed: each
    of Linear's webhooks has its own, and a new one is in use before the old one is gone."""

    host: str = "127.0.0.1"
    port: int = Field(default=4280, ge=1, le=65535)
    open_status: bool = False
    """`/status` and `/metrics` are answered to everybody who reaches the port, not only to this machine."""
    github_secret: Secrets = ()
    linear_secret: Secrets = ()
    jira_secret: Secrets = ()


class StrongModelSection(Section):
    """The model of the last attempt (RB10): same meaning as the settings `model`, `model_url`, `model_key`."""

    model: str
    url: str | None = None
    key: Secret | None = None
    context_tokens: int | None = Field(default=None, gt=0)
    usd_per_million_tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)


Level = Literal["usual", "strong"]


class ModelSection(Section):
    """One model that calls may go to. Models of one level are tried in the order of the file."""

    model: str
    """As the setting `model`: `embedded`, `openai/MODEL` or `anthropic/MODEL`."""
    url: str | None = None
    key: Secret | None = None
    level: Level = "usual"
    tier: Literal["small", "capable"] | None = None
    context_tokens: int | None = Field(default=None, gt=0)
    timeout_seconds: float | None = Field(default=None, gt=0)
    usd_per_million_tokens: tuple[float, float, float] | None = None
    """Price of prompt, cached prompt and completion tokens; None: the price list's."""
    trust: Literal["private", "public"] = "private"
    """`public`: sees only code of repositories that are `public: true` (free tiers may train on what they are sent)."""

    @property
    def actual_tier(self) -> Literal["small", "capable"]:
        """The tier, `small` for `embedded` and `capable` for the rest where none is given."""
        return self.tier or ("small" if self.model == "embedded" else "capable")


class RoleSection(Section):
    """Which model, or which agent, a role of the factory uses."""

    level: Level = "usual"
    strong_from_effort: int | None = Field(default=None, ge=1, le=5)
    """From this effort of the plan on, the strong level is used."""
    agent: str | None = None
    """Only for the coder: the agent of `agents` that does the work; None: the built-in one."""


class BudgetsSection(Section):
    """Caps in USD; work stops before one is passed. None: no cap."""

    ticket_usd: float | None = Field(default=None, ge=0)
    day_usd: float | None = Field(default=None, ge=0)
    month_usd: float | None = Field(default=None, ge=0)
    role_usd: dict[str, float] = {}
    """Per role and ticket."""
    ticket_agents: int | None = Field(default=None, ge=1)
    """Agent sessions of one ticket, over all its attempts (RB11)."""

    @property
    def in_usd(self) -> bool:
        """Whether a cap on money is set, so that every model that is not local needs a price."""
        return any(cap is not None for cap in (self.ticket_usd, self.day_usd, self.month_usd)) or bool(self.role_usd)


class MemorySection(Section):
    """Where knowledge points are kept (M4): in home, or on a Qdrant server that several machines share."""

    enabled: bool = True
    url: str | None = None
    """Of a Qdrant server; None: QDRANT_URL of the environment, else the engine in home."""
    key: Secret | None = None
    """Of that server; None: QDRANT_API_KEY of the environment."""
    embedder: Literal["auto", "minilm", "bm25"] = "auto"
    """`auto`: the small model where its packages are installed, else words alone."""
    search_seconds: float = Field(default=5, gt=0, le=60)
    """Longest a ticket waits for memory before it works without."""
    idle_seconds: float = Field(default=120, gt=0)
    """After which the process that holds the index ends when nobody asked it anything."""


class LearningSection(Section):
    """What the factory may change about its own work from how earlier runs ended (L1, L2)."""

    corrections: bool = True
    """A failure that was seen three times is pointed out to the next run of its kind."""
    route: bool = False
    """Apply what `calibrate` recommends about the coder's level, instead of only showing it."""
    min_runs: int = Field(default=20, ge=5)
    """Runs on either side before a recommendation is made."""
    low_confidence: float = Field(default=0.5, ge=0, le=1)
    """Below it the second attempt has its coder on the strong level already; 0: never."""
    max_strong_share: float = Field(default=0.3, ge=0, le=1)
    """Largest share of the last 30 days' runs that learning may send to the strong level."""
    corpus: bool = True
    """Write accepted runs and lessons as training examples to the object store."""


class PlaybooksSection(Section):
    """Operations that were seen often enough to run without a model (L3)."""

    enabled: bool = True
    label: str = "operation"
    """Tickets with this label are operations: a playbook that fits works them, else an agent."""
    sightings: int = Field(default=3, ge=2)
    """Equal successful operations that make a playbook."""
    auto_approve: bool = False
    """A new playbook without destructive steps may run before a person approved it."""


class RepairSection(Section):
    """How far the factory may change its own code (L4)."""

    enabled: bool = False
    repository: str | None = None
    """The configured repository with the factory's own code; None: the only one there is."""
    board: str | None = None
    """Where its tickets are created; None: the only board there is."""
    smoke: str = "python -m deployments.smoke"
    """Shell command that proves a release before it is used, in it, with its code in front of the installed one."""
    every_seconds: float = Field(default=300, ge=60)
    """How often failures and a new release are looked at."""
    signals: int = Field(default=3, ge=2)
    """Failures of one kind within `window_hours` that are worth a repair."""
    window_hours: float = Field(default=24, gt=0)
    max_lines: int = Field(default=500, ge=1, le=500)
    max_files: int = Field(default=10, ge=1, le=10)
    blocked_paths: tuple[str, ...] = ()
    """Glob patterns besides those that are always blocked (secrets, auth, deployment and compose files, CI, the gates)."""
    cooldown_seconds: float = Field(default=3600, ge=3600)
    approve_from_effort: int = Field(default=4, ge=1, le=4)
    """From this effort of the plan on a person has to approve."""
    watch_seconds: float = Field(default=1800, gt=0)
    """How long a new release is watched."""
    watch_runs: int = Field(default=20, ge=1)
    """Ended runs that are enough to judge it sooner."""


class ChoreSection(Section):
    """One kind of housekeeping: when, and how much of it."""

    cron: Annotated[str, AfterValidator(checked_cron)] | None = None
    """In UTC, five fields. Left out: the shipped schedule; `null`: never by itself."""
    max_per_day: int = Field(default=5, ge=0)


class HousekeepingSection(Section):
    """Work the factory finds by itself (W1, W2)."""

    enabled: bool = False
    board: str | None = None
    """Where new tickets are created; None: the only board there is."""
    state: str | None = None
    """State of a new ticket; None: the first of the board's queue."""
    labels: tuple[str, ...] = ("darkfactory",)
    max_tickets_per_day: int = Field(default=5, ge=0)
    """Over all kinds."""
    refill_seconds: float = Field(default=1800, ge=60)
    """When the queue is empty, work is looked for at once, but not more often than this."""
    chores: dict[str, ChoreSection] = {}
    """Kinds by name, where they differ from the shipped table."""

    def cron(self, chore: str) -> str | None:
        """When a chore of the shipped table runs; None: never by itself."""
        section = self.chores.get(chore)
        return section.cron if section is not None and "cron" in section.model_fields_set else CHORES[chore].cron

    def max_per_day(self, chore: str) -> int:
        return self.chores.get(chore, ChoreSection()).max_per_day


class AgentSection(Section):
    """A coding agent installed on the nodes that takes over the coder's work (A2)."""

    kind: Literal["claude-code", "codex", "opencode", "mini-swe-agent", "command"]
    program: str | None = None
    """Path or name of the program; None: the usual name. For `command`: the shell command."""
    model: str | None = None
    url: str | None = None
    """Base URL of the model endpoint, as the agent's own file in `infra.agents` says; None: the vendor's own."""
    key: Secret | None = None
    """Handed to the endpoint by the factory's gateway; the agent never sees it. None: the agent's own login is shared."""
    login: Path | None = None
    """Folder with the agent's own login, shared by mount, never copied; None: the usual place in the user's home."""
    hosts: tuple[HostPort, ...] = ()
    """Further `host:port` it may reach."""
    max_seconds: float = Field(default=3600, gt=0)
    max_turns: int = Field(default=100, ge=1)
    max_usd: float | None = Field(default=None, gt=0)
    """Reserved before a session, and given to the agent as its own limit where it has one."""
    usd_per_million_tokens: tuple[float, float, float] | None = None
