"""Forges: where a finished branch becomes a pull request. One file per system."""

from __future__ import annotations

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


class Forge(Protocol):
    """Finding, opening and updating pull requests. At most one open pull request per branch, ever."""

    def find(self, branch: str) -> PullRequest | None: ...

    def publish(self, *, branch: str, base: str, head_sha: str, title: str, body: str) -> PullRequest:
        """Open the draft pull request of `branch`, or update the one that is there. The branch is already pushed."""
        ...

    def close(self, branch: str, reason: str) -> None: ...
