"""Ticket boards: the one normalised `Ticket` and the protocol every board adapter keeps. One file per system."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from infra.llm import Frozen


class Comment(Frozen):
    """`marker` is the hidden idempotency marker of a comment the factory wrote, else None. `member`: the service says that
    the author belongs to the repository."""

    author: str
    at: datetime | None
    body: str
    marker: str | None = None
    member: bool = False


class Ticket(Frozen):
    """One piece of work, whatever board it came from.

    `key` is unique among all boards of a factory. `labels` are trimmed, lowercased, deduplicated; `priority` is 1 (urgent)
    to 4 (low) or None; `blocked_by` holds the keys of tickets that block it and are not closed; `closed` says that the
    board counts the state as finished. Unusable optional fields are None, required ones are never defaulted (TR3).
    """

    board: str = "folder"
    """The board's name in factory.yaml."""
    key: str
    title: str
    body: str
    state: str
    labels: tuple[str, ...] = ()
    priority: int | None = None
    author: str | None = None
    assignee: str | None = None
    repository: str | None = None
    blocked_by: tuple[str, ...] = ()
    comments: tuple[Comment, ...] = ()
    closed: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    url: str = ""

    @property
    def revision(self) -> str:
        """Changes when what has to be done changes: title, body, and comments by people (not the factory's own)."""
        said = [self.title, self.body, *(c.body for c in self.comments if c.marker is None)]
        return hashlib.sha256("\0".join(said).encode("utf-8", "replace")).hexdigest()[:16]

    @property
    def content(self) -> str:
        """Changes when a person edits the ticket itself; known without reading comments."""
        return hashlib.sha256(f"{self.title}\0{self.body}".encode("utf-8", "replace")).hexdigest()[:16]


class Board(Protocol):
    """Reads and writes of one board. All methods block. Every write may be repeated and then changes nothing.

    Raises ConfigError, AuthFailed (secret), RateLimited (with `reset_at`), Unreachable (transport, 5xx), UnexpectedStatus,
    ProviderFault (payload) and BrokenPagination; nothing is retried inside and nothing sleeps.
    """

    @property
    def name(self) -> str:
        """The board's name in factory.yaml; part of every key in the ledger."""
        ...

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """All open tickets in any of the states (compared without case) that carry the board's `required_labels`.

        Each once, comments not read (they cost a call each). An empty list makes no request (TR1); a malformed record is
        dropped with a log line (TR2); a failed page fails the call.
        """
        ...

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets, closed ones too, with their comments; a missing key is absent from the answer.

        An empty list makes no request (TR1); a malformed record raises ProviderFault, because absence means gone (TR2).
        """
        ...

    def move(self, key: str, state: str) -> None:
        """Set the ticket's state. Raises ConfigError that lists the board's states when it knows no such state."""
        ...

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the one comment that carries `marker` (hidden, and signed: a pasted marker is not ours)."""
        ...

    def label(self, key: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add and remove labels; what is there, or gone, already is fine."""
        ...

    def create(
        self, title: str, body: str, *, marker: str, labels: Sequence[str] = (), priority: int | None = None
    ) -> Ticket:
        """Create a ticket in the board's first queue state, or return the one that `marker` created before."""
        ...
