"""The delivery archive of a ticket and what it cost: everything a run made, kept in the object store."""

from __future__ import annotations

import asyncio
import json

from prefect import task

from infra.ledger import SeatUsage
from infra.redaction import redact
from tasks import paper, services
from tasks.models import Frozen, Job, Plan, Result, Usage


class Costs(Frozen):
    """What the model calls of a ticket took, over all its attempts, one entry for each member of a role and model."""

    seats: tuple[SeatUsage, ...] = ()

    @property
    def total(self) -> Usage:
        return sum((s.usage for s in self.seats), Usage())

    @property
    def by_model(self) -> dict[tuple[str, str], Usage]:
        """By provider (empty: not known) and model, in the order of first use."""
        found: dict[tuple[str, str], Usage] = {}
        for s in self.seats:
            key = s.provider or "", s.model
            found[key] = found.get(key, Usage()) + s.usage
        return found


def cost_table(costs: Costs) -> list[str]:
    """Tokens as the providers counted them; USD by the prices in the settings. One row per model, and all together."""
    rows = [_row(f"{model} ({provider})" if provider else model, u) for (provider, model), u in costs.by_model.items()]
    return [
        "| model | calls | prompt tokens | cached | completion tokens | model seconds | USD |",
        "|---|---|---|---|---|---|---|",
        *rows,
        *([_row("all", costs.total)] if len(rows) != 1 else []),
    ]


def _row(name: str, usage: Usage) -> str:
    return (
        f"| {name} | {usage.calls} | {usage.prompt_tokens} | {paper.cached_share(usage):.0%} | {usage.completion_tokens} "
        f"| {usage.seconds:.0f} | {usage.cost_usd:.4f} |"
    )


@task(name="cost", task_run_name="cost")
async def cost_so_far(job: Job) -> Costs:
    """All calls of this ticket's attempts from the ledger, each counted once however often a run was resumed."""
    seats = await asyncio.to_thread(services.ledger(job.ticket.board).usage_by_seat, job.ticket.key)
    costs = Costs(seats=tuple(seats))
    await paper.leave(job, "cost", "\n".join(cost_table(costs)))
    return costs


@task(name="archive", task_run_name="archive")
async def archive(job: Job, plan: Plan, result: Result, usage: Usage) -> None:
    """`<ticket>/attempt-<n>/delivery.json` (plan, candidate, evidence, review, audits, verdict, usage) and `change.diff`."""
    delivery = {
        "ticket": job.ticket.model_dump(mode="json"),
        "repository": job.repository.model_dump(mode="json"),
        "model": job.model,
        "plan": plan.model_dump(mode="json"),
        **result.model_dump(mode="json", exclude={"evidence": {"diff"}, "refused": True}),
        "usage": usage.model_dump(mode="json"),
    }
    folder = f"{job.ticket.key}/attempt-{job.attempt}"
    put = services.objects().put
    await asyncio.to_thread(
        put, f"{folder}/delivery.json", redact(json.dumps(delivery, indent=1, sort_keys=True)).encode()
    )
    await asyncio.to_thread(put, f"{folder}/change.diff", result.evidence.diff.encode())
