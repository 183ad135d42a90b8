"""Forges: where a finished branch becomes a pull request. One file per system."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

from infra.llm import Frozen


class PullRequest(Frozen):
    """A published pull request. `number` is the forge's own number or slug; `url` is what a person opens."""

    branch: str
    title: str
    body: str
    base: str
    head_sha: str
    url: str
    draft: bool = True
    state: Literal["open", "closed", "merged"] = "open"
    number: int | None = None
    labels: tuple[str, ...] = ()
    updated_at: datetime | None = None
    """The last three are known of what `Forge.open` lists."""
    fork: bool = False
    """Its branch is in another repository: whoever opened it may be anybody."""


class Review(Frozen):
    """What a person said on a pull request: a review, a remark on a line (`path`, `line`) or a comment below it."""

    author: str
    body: str
    at: datetime | None = None
    verdict: Literal["approved", "changes-requested", "commented"] = "commented"
    path: str | None = None
    line: int | None = None
    head_sha: str | None = None
    """The commit that was looked at."""
    member: bool = False
    """The forge says that the author belongs to the repository."""


class Check(Frozen):
    """One CI check of the head commit: GitHub's check runs and commit statuses look alike here."""

    name: str
    state: Literal["pending", "passed", "failed"]
    url: str = ""
    summary: str = ""


class Forge(Protocol):
    """Finding, opening, updating and reading pull requests. At most one open pull request per branch, ever.

    All methods block and may be repeated. They raise what a board raises (see `infra.boards.Board`).
    """

    def find(self, branch: str) -> PullRequest | None:
        """The branch's pull request: the open one, else the newest closed or merged one, else None."""
        ...

    def open(self) -> list[PullRequest]:
        """All open pull requests from branches of the repository itself, in as few requests as there are pages."""
        ...

    def proposed(self) -> list[PullRequest]:
        """As `open`, with those of forks."""
        ...

    def answer(self, pull_request: PullRequest, body: str, marker: str) -> None:
        """As `comment`, on a pull request that `proposed` listed."""
        ...

    def publish(
        self, *, branch: str, base: str, head_sha: str, title: str, body: str, draft: bool = True
    ) -> PullRequest:
        """Open the pull request of `branch`, or update the one that is there. The branch is already pushed.

        One that was merged with `head_sha` is returned as it is: the same call again never makes a second one.

        `draft` is heard when it is opened; later people decide that.
        """
        ...

    def merge(self, branch: str, head_sha: str) -> bool:
        """Merge the branch's open pull request while its head is `head_sha`; True also when it was merged before.

        False when the forge does not take it now: a draft, another head, a conflict, a rule of the repository.
        """
        ...

    def comment(self, branch: str, body: str, marker: str) -> None:
        """Write, or replace in place, the one comment with `marker` on the branch's open pull request, if there is one."""
        ...

    def reviews(self, branch: str) -> list[Review]:
        """What people (not the factory) said on the branch's pull request, oldest first."""
        ...

    def checks(self, branch: str) -> list[Check]:
        """CI results of the pull request's head commit, by name."""
        ...

    def close(self, branch: str, reason: str) -> None:
        """Close the branch's open pull request with a comment; nothing happens when none is open."""
        ...
