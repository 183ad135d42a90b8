"""Which model a role uses for a ticket: the level that factory.yaml gives the role at the plan's effort."""

from __future__ import annotations

from tasks.models import Frozen, Job, Tier


class Seat(Frozen):
    """A role's place at a model. `model` is the name that `ask` takes."""

    model: str
    tier: Tier
    context_tokens: int


def seat(job: Job, role: str, effort: int = 1) -> Seat:
    """The model of `role` for this job. An attempt that is escalated uses the strong level for every role."""
    return Seat(model=job.model, tier=job.tier, context_tokens=job.context_tokens)
