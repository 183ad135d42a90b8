"""Ticket boards: the one normalised `Ticket` and the protocol every board adapter keeps. One file per system."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Protocol

from infra.llm import Frozen


class Comment(Frozen):
    """`marker` is the hidden idempotency marker of a comment the factory wrote, else None."""

    author: str
    at: datetime | None
    body: str
    marker: str | None = None


class Ticket(Frozen):
    """One piece of work, whatever board it came from.

    `labels` are trimmed, lowercased, deduplicated; `priority` is 1 (urgent) to 4 (low) or None;
    `blocked_by` holds ticket keys; unusable optional fields are None, required ones are never defaulted.
    """

    key: str
    title: str
    body: str
    state: str
    labels: tuple[str, ...] = ()
    priority: int | None = None
    author: str | None = None
    repository: str | None = None
    blocked_by: tuple[str, ...] = ()
    comments: tuple[Comment, ...] = ()
    created_at: datetime | None = None
    url: str = ""

    @property
    def revision(self) -> str:
        """Changes when what has to be done changes: title, body, and comments by people (not the factory's own)."""
        said = [self.title, self.body, *(c.body for c in self.comments if c.marker is None)]
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


class Board(Protocol):
    """Reads and writes of one board. Every write may be repeated and then changes nothing."""

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """All tickets in any of the states; an empty list makes no request. A malformed record is dropped with a log."""
        ...

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets; a missing key is absent from the answer; a malformed record raises ConfigError."""
        ...

    def move(self, key: str, state: str) -> None:
        """Set the ticket's state."""
        ...

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the one comment that carries `marker`."""
        ...
