"""The sections of `factory.yaml`: boards, repositories, dispatch, nodes' defaults, notifications and webhooks.

Secrets stand in the file only as `$NAME`, read from the environment (CF4).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _expand(value: Any) -> Any:
    """`$NAME` is the environment's NAME. Nothing else reads the environment, and an empty variable is a missing one."""
    if isinstance(value, str) and (named := re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", value)):
        found = os.environ.get(named[1], "").strip()
        if not found:
            raise ValueError(f"the environment variable {named[1]} is not set or empty; set it or remove this line")
        return found
    return value


Secret = Annotated[SecretStr, BeforeValidator(_expand)]


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
    """Secrets of the receivers of `darkfactory up`; a service without one is refused."""

    host: str = "127.0.0.1"
    port: int = Field(default=4280, ge=1, le=65535)
    github_secret: Secret | None = None
    linear_secret: Secret | None = None
    jira_secret: Secret | None = None


class StrongModelSection(Section):
    """The model of the last attempt (RB10): same meaning as the settings `model`, `model_url`, `model_key`."""

    model: str
    url: str | None = None
    key: Secret | None = None
    context_tokens: int | None = Field(default=None, gt=0)
    usd_per_million_tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)
