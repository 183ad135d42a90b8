"""Which model a role uses for a ticket: the level that factory.yaml gives the role at the plan's effort, or that earlier runs
taught to give the coder."""

from __future__ import annotations

from infra.sections import Level, RoleSection
from tasks import services
from tasks.models import Frozen, Job, Tier


class Seat(Frozen):
    """A role's place at a model. `model` is the name that `ask` takes."""

    model: str
    tier: Tier
    context_tokens: int


def seat(job: Job, role: str, effort: int = 1) -> Seat:
    """The model of `role` for this job. An attempt that is escalated uses the strong level for every role."""
    lifted = role == "coder" and job.coder_level == "strong" and services.has_strong()
    if lifted or level_of(role, effort) == "strong":
        strong = services.router("strong")
        return Seat(model=strong.name, tier=strong.tier, context_tokens=strong.context_tokens)
    return Seat(model=job.model, tier=job.tier, context_tokens=job.context_tokens)


def level_of(role: str, effort: int = 1) -> Level:
    """The level that factory.yaml gives a role at an effort."""
    section = services.settings().roles.get(role, RoleSection())
    from_effort = section.strong_from_effort
    return "strong" if section.level == "strong" or (from_effort is not None and effort >= from_effort) else "usual"
