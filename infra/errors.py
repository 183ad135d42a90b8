"""Every error the factory raises, named for what the caller should do next.

One question decides retries: is it an `InfraError`? Then nothing the ticket did caused it and no attempt is burnt.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal


class FactoryError(Exception):
    """Base of all. `exit_code` is what the command line ends with; `category` is stable, for logs and programs (TR4)."""

    exit_code = 1
    category = "work"
    service: str | None = None
    """What failed, as pauses name it (`board:NAME`, `provider:NAME`), where that is known. It is paused then."""


class ConfigError(FactoryError):
    """The user has to change a setting, an argument or a file. Nothing was started."""

    exit_code = 2
    category = "config"


class UnknownModel(ConfigError):
    """The endpoint does not offer the model that the settings name, whatever it is asked."""


class InfraError(FactoryError):
    """The machine, the network or a provider failed, not the ticket: wait or repair, then run again."""

    exit_code = 3
    category = "infra"


class RateLimited(InfraError):
    """The provider asks to wait. `reset_at` is the time (aware, UTC) it named, or None when it named none."""

    category = "rate-limited"

    def __init__(self, message: str, reset_at: datetime | None = None) -> None:
        super().__init__(message)
        self.reset_at = reset_at


class AuthFailed(InfraError):
    """The credentials are missing, wrong or revoked: a person has to mend them."""

    category = "secret"


class QuotaExhausted(InfraError):
    """The money or the plan is used up: waiting does not help, a person has to act."""


class BudgetExhausted(InfraError):
    """A cap of the section `budgets` would be passed, so the call was not made.

    `scope` is the cap; `reset_at` when the cap of a day or month opens again, None for those of a ticket.
    """

    category = "budget"

    def __init__(
        self, message: str, scope: Literal["ticket", "role", "day", "month"], reset_at: datetime | None = None
    ) -> None:
        super().__init__(message)
        self.scope, self.reset_at = scope, reset_at


class CapacityUnavailable(InfraError):
    """The provider is up but has no room (overloaded, 503, 529)."""


class Unreachable(InfraError):
    """No connection, a time-out, a 5xx, or a stream that was cut. `may_be_billed`: the request had reached the other side,
    and nobody said what became of it."""

    category = "transport"

    def __init__(self, message: str, *, may_be_billed: bool = False) -> None:
        super().__init__(message)
        self.may_be_billed = may_be_billed


class ProviderFault(InfraError):
    """The endpoint answers, but not in its own protocol (garbage, an empty body, a wrong content type)."""

    category = "payload"


class UnexpectedStatus(InfraError):
    """A service answered with a status that none of the other errors stands for."""

    category = "status"


class BrokenPagination(ProviderFault):
    """A later page of an answer failed or pointed back: the whole read is void, because a hole looks like "gone"."""

    category = "pagination"


class SandboxUnavailable(InfraError):
    """Commands cannot be isolated on this machine, and `sandbox: none` was not chosen by hand."""


class DiskFull(InfraError):
    """No space is left where the factory writes."""


class FencedOff(InfraError):
    """This run no longer holds its ticket: its lease ended and another run took over. It must not write anything more."""

    category = "fenced"


class Stopped(InfraError):
    """The run was told to stop (its ticket was closed or taken away, it made no progress, or its time is over)."""

    category = "stopped"

    def __init__(self, message: str, kind: Literal["stalled", "timeout", "cancelled"] = "cancelled") -> None:
        super().__init__(message)
        self.kind = kind


class NeedsHuman(FactoryError):
    """Only a person can answer `question`. The ticket is parked with it; a reply resumes the work. Burns nothing."""

    category = "question"

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


class WorkFailed(FactoryError):
    """The work itself failed. This burns one attempt."""


class InvalidOutput(WorkFailed):
    """A model answered in a form that cannot be used."""


class TestsFailed(WorkFailed):
    """The repository's tests cannot be used as evidence (they hang, flood the disk, or do not start)."""

    __test__ = False


class LimitReached(WorkFailed):
    """A bound on rounds, steps, tokens, time or money was hit."""
