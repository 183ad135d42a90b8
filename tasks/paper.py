"""The paper trail: what a step decided, as an artifact of its run in Prefect's UI and as a file in the object store."""

from __future__ import annotations

import asyncio
import re

from prefect.artifacts import acreate_markdown_artifact

from infra.redaction import redact
from tasks import services
from tasks.models import Job


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect's artifact keys want it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


async def leave(job: Job, kind: str, markdown: str) -> None:
    """Keep one sheet under the ticket and kind. Called again with the same text it changes nothing."""
    text = redact(markdown)
    key = f"{job.ticket.key}/attempt-{job.attempt}/{kind}.md"
    await asyncio.to_thread(services.objects().put, key, text.encode())
    await acreate_markdown_artifact(markdown=text, key=f"{slug(job.ticket.key)}-{kind}", description=job.ticket.title)
