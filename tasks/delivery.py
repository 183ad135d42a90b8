"""The delivery archive of a ticket and what it cost: everything a run made, kept in the object store."""

from __future__ import annotations

import asyncio
import json

from prefect import task

from infra.redaction import redact
from tasks import paper, services
from tasks.models import Job, Plan, Result, Usage


def cost_table(job: Job, usage: Usage) -> list[str]:
    """Tokens as the provider counted them; USD by the prices in the settings."""
    share = usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else 0.0
    return [
        "| model | calls | prompt tokens | cached | completion tokens | model seconds | USD |",
        "|---|---|---|---|---|---|---|",
        f"| {job.model} | {usage.calls} | {usage.prompt_tokens} | {share:.0%} | {usage.completion_tokens} "
        f"| {usage.seconds:.0f} | {usage.cost_usd:.4f} |",
    ]


@task(name="cost", task_run_name="cost")
async def cost_so_far(job: Job) -> Usage:
    """All calls of this ticket's attempts from the ledger, each counted once however often a run was resumed."""
    usage = await asyncio.to_thread(services.ledger(job.ticket.board).usage_of, job.ticket.key)
    await paper.leave(job, "cost", "\n".join(cost_table(job, usage)))
    return usage


@task(name="archive", task_run_name="archive")
async def archive(job: Job, plan: Plan, result: Result, usage: Usage) -> None:
    """`<ticket>/attempt-<n>/delivery.json` (plan, candidate, evidence, review, audits, verdict, usage) and `change.diff`."""
    delivery = {
        "ticket": job.ticket.model_dump(mode="json"),
        "repository": job.repository.model_dump(mode="json"),
        "model": job.model,
        "plan": plan.model_dump(mode="json"),
        **result.model_dump(mode="json", exclude={"evidence": {"diff"}}),
        "usage": usage.model_dump(mode="json"),
    }
    folder = f"{job.ticket.key}/attempt-{job.attempt}"
    put = services.objects().put
    await asyncio.to_thread(
        put, f"{folder}/delivery.json", redact(json.dumps(delivery, indent=1, sort_keys=True)).encode()
    )
    await asyncio.to_thread(put, f"{folder}/change.diff", result.evidence.diff.encode())
