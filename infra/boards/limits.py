"""What a service says about how much it still takes, as its adapter keeps it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from infra.errors import RateLimited


class Allowance:
    """The requests that a service will still take in its current window, by the headers of its answers (TR4)."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._closed_until: datetime | None = None

    def note(self, remaining: str | None, reset_at: datetime | None) -> None:
        """What the headers of an answer say. An answer without a number changes nothing."""
        if remaining is not None and re.fullmatch(r"[0-9]{1,15}", remaining.strip()):
            self._closed_until = reset_at if int(remaining) == 0 else None

    def check(self) -> None:
        """Raises RateLimited while nothing is left, so that nobody asks only to be refused."""
        if self._closed_until is not None and datetime.now(UTC) < self._closed_until:
            raise RateLimited(
                f"{self._service} takes no more requests before {self._closed_until:%Y-%m-%d %H:%M:%S} UTC; wait",
                self._closed_until,
            )
