"""The paper trail: what a step decided, as an artifact of its run in Prefect's UI and as a file in the object store."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Literal

from prefect.artifacts import acreate_markdown_artifact
from pydantic import BaseModel

from infra.redaction import redact
from tasks import services
from tasks.models import Frozen, Job, Usage

Status = Literal["success", "partial", "fail", "skipped"]
"""`partial`: it came to something, but not to all that was asked; `fail`: its answer could not be used."""


class Signature(Frozen):
    """Who made a sheet and what it took. `index` counts the members of a role from 1; `model` is `code` for rules."""

    role: str
    index: int = 1
    round: int = 1
    model: str
    prompt_version: str = ""
    status: Status = "success"
    usage: Usage = Usage()


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect's artifact keys want it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cached_share(usage: Usage) -> float:
    """Part of the prompt tokens that the provider did not read again, 0 to 1."""
    return usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else 0.0


def header(signed: Signature) -> str:
    """The table that every role's sheet begins with."""
    usage = signed.usage
    return (
        "| role | index | round | model | calls | prompt tokens | cached | completion tokens | USD | status |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
        f"| {signed.role} | {signed.index} | {signed.round} | {signed.model} | {usage.calls} | {usage.prompt_tokens} "
        f"| {cached_share(usage):.0%} | {usage.completion_tokens} | {usage.cost_usd:.4f} | {signed.status} |"
    )


async def leave(job: Job, kind: str, markdown: str) -> None:
    """Keep one sheet under the ticket and kind. Called again with the same text it changes nothing."""
    text = redact(markdown)
    await _put(job, f"{kind}.md", text)
    await acreate_markdown_artifact(markdown=text, key=f"{slug(job.ticket.key)}-{kind}", description=job.ticket.title)


async def leave_sheet(job: Job, kind: str, signed: Signature, markdown: str, made: BaseModel) -> None:
    """A role's sheet: `<kind>.md` with the signature on top, and the same as data in `<kind>.json`."""
    said = {
        "schema": 1,
        "ticket": job.ticket.key,
        "attempt": job.attempt,
        "base_sha": job.repository.base_sha,
        **signed.model_dump(mode="json"),
        "made": made.model_dump(mode="json", exclude={"usage"}),
    }
    await _put(job, f"{kind}.json", redact(json.dumps(said, indent=1, sort_keys=True)))
    await leave(job, kind, f"{header(signed)}\n\n{markdown}")


async def _put(job: Job, name: str, text: str) -> None:
    await asyncio.to_thread(services.objects().put, f"{job.ticket.key}/attempt-{job.attempt}/{name}", text.encode())
