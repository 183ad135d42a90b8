"""Who works on a ticket: how many of each role an effort gets, up to thirteen (T10), and the sheet that counts them."""

from __future__ import annotations

from prefect import task

from tasks import paper
from tasks.delivery import Costs
from tasks.exemptions import needs_no_testers
from tasks.intents import intent_of
from tasks.models import Frozen, Job, Plan, Tier, Usage
from tasks.seats import seat

BY_CODE = "code"


class Crew(Frozen):
    """Seats per role. There is always one architect, one judge, one scribe and one collector."""

    coders: int = 1
    testers: int = 1
    auditors: int = 1
    reviewers: int = 1
    tests_anyway: bool = True
    """Testers write even where the ticket's own tests can show the change."""
    second_look: bool = False
    """The auditors look at the finished change too."""
    own_words: bool = False
    """The scribe asks a model for the pull request's words; else they are made by rule."""

    @property
    def members(self) -> tuple[tuple[str, int], ...]:
        """Role and index of everybody, each once."""
        sizes = {"architect": 1, "coder": self.coders, "tester": self.testers, "auditor": self.auditors,
                 "reviewer": self.reviewers, "judge": 1, "scribe": 1, "collector": 1}  # fmt: skip
        return tuple((role, index) for role, size in sizes.items() for index in range(1, size + 1))


CREWS = {
    1: Crew(auditors=0, reviewers=0, tests_anyway=False),
    2: Crew(own_words=True),
    3: Crew(coders=2, testers=2, own_words=True),
    4: Crew(coders=3, testers=2, auditors=2, second_look=True, own_words=True),
    5: Crew(coders=3, testers=3, auditors=2, second_look=True, own_words=True),
}


def crew(effort: int, tier: Tier) -> Crew:
    """The crew of an effort. Effort 1 has only who makes evidence, and the judge who reads the change.

    A small model gets one of each: more of the same weak opinion costs time and decides nothing; its coder samples
    instead, and its scribe works by rule.
    """
    return Crew() if tier == "small" else CREWS[min(max(effort, 1), 5)]


def crew_of(job: Job, plan: Plan) -> Crew:
    """The crew of this plan. Every role's size follows the tier of its own seat."""

    def of(role: str) -> Crew:
        return crew(plan.effort, seat(job, role, plan.effort).tier)

    testers, auditors = of("tester"), of("auditor")
    return Crew(
        coders=of("coder").coders,
        testers=0 if needs_no_testers(intent_of(job.ticket), plan) else testers.testers,
        tests_anyway=testers.tests_anyway,
        auditors=auditors.auditors,
        second_look=auditors.second_look,
        reviewers=of("reviewer").reviewers,
        own_words=of("scribe").own_words,
    )


@task(name="crew", task_run_name="crew")
async def leave_crew(job: Job, plan: Plan, costs: Costs) -> None:
    """The sheet `crew`: every member once, with the model that answered for it and what that took on this ticket."""
    found = crew_of(job, plan)
    rows = [_row(role, index, found, costs) for role, index in found.members]
    head = f"{len(found.members)} roles for effort {plan.effort}."
    table = "| role | model | calls | prompt tokens | cached | completion tokens | USD |\n|---|---|---|---|---|---|---|"
    await paper.leave(job, "crew", "\n".join([head, "", table, *rows]))


def _row(role: str, index: int, found: Crew, costs: Costs) -> str:
    alone = (role, 2) not in found.members
    own = [c for c in costs.seats if c.role == role and (alone or (c.candidate or 1) == index)]
    models = ", ".join(dict.fromkeys(c.model for c in own)) or (
        BY_CODE if role in ("scribe", "collector") else "not asked"
    )
    usage = sum((c.usage for c in own), Usage())
    name = role if alone else f"{role} {index}"
    return (
        f"| {name} | {models} | {usage.calls} | {usage.prompt_tokens} | {paper.cached_share(usage):.0%} "
        f"| {usage.completion_tokens} | {usage.cost_usd:.4f} |"
    )
