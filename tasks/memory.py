"""Memory around a run: asked before work starts, told how it ended, and seen in the ticket's sheets (M2).

What is recalled was once written by tickets, tools and models, so it is hostile: it enters a prompt as quoted single
lines inside the ticket's fence, bounded, and never as an instruction. Memory that cannot be asked holds nothing up.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any

from prefect import task

from infra.errors import BudgetExhausted, FencedOff, NeedsHuman, Stopped
from infra.memory import Answer, Point, Record, Wanted
from infra.memory.records import signature
from tasks import paper, services
from tasks.models import FactoryError, Job, Outcome, Ticket

RECALLED_POINTS = 8
RECALLED_TOKENS = 1_500
SMALL_RECALLED_TOKENS = 500
"""A small model is shown less code, too."""
CHARS_PER_TOKEN = 3
"""Few, so that the bound holds for code and for languages other than English, too."""
SEARCHED_CHARS = 4_000
_NOTHING_TO_LEARN = (BudgetExhausted, FencedOff, NeedsHuman, Stopped)
"""Endings that say nothing about the work."""
_log = logging.getLogger(__name__)


def recall(ticket: Ticket, repository: str, error_signature: str = "") -> tuple[str, ...]:
    """What earlier work knows that fits the ticket, best first: at most RECALLED_POINTS lines, RECALLED_TOKENS in all.

    `error_signature` (see `infra.memory.records.signature`) brings up the same failure. Lessons of other repositories come
    only when they were confirmed. Each line is hostile data until it is fenced.
    """
    return rendered(_search(ticket, repository, error_signature))


async def recall_for(job: Job) -> tuple[str, ...]:
    """As `recall`, for a run: the sheet `memories` shows what was found, or why memory could not be asked."""
    if services.memory() is None:
        return ()
    answer = await asyncio.to_thread(_search, job.ticket, job.repository.name, "")
    lines = rendered(answer, SMALL_RECALLED_TOKENS if job.tier == "small" else RECALLED_TOKENS)
    await paper.leave(job, "memories", _recalled_sheet(answer, lines))
    return lines


def _search(ticket: Ticket, repository: str, error_signature: str) -> Answer:
    memory = services.memory()
    if memory is None:
        return Answer(degraded="memory is turned off (memory.enabled)")
    text = f"{ticket.title}\n{ticket.body}"[:SEARCHED_CHARS].encode(errors="replace").decode()  # half characters
    return memory.search(Wanted(text=text, scope=repository, error_signature=error_signature, limit=RECALLED_POINTS))


def rendered(answer: Answer, tokens: int = RECALLED_TOKENS) -> tuple[str, ...]:
    """One line per point, until the tokens are used up: id, day, kind and source as plain words, the text in quotes."""
    lines: list[str] = []
    left = tokens * CHARS_PER_TOKEN
    for found in answer.found[:RECALLED_POINTS]:
        line = _line(found.point)
        if len(line) + 1 > left:
            continue
        lines.append(line)
        left -= len(line) + 1
    return tuple(lines)


def _line(point: Point) -> str:
    record = point.record
    seen = f", seen {point.seen} times" if point.seen > 1 else ""
    source = _one_line(point.sources[0] if point.sources else record.ticket, 80) or "unknown"
    head = (
        f"{point.id[:8]} {point.updated_at:%Y-%m-%d} {record.kind} of {_one_line(record.scope, 80)} from {source}{seen}"
    )
    return f"[{head}] {json.dumps(_one_line(record.text, 800), ensure_ascii=False)}"


def _one_line(text: str, chars: int) -> str:
    """Without line breaks and control characters; brackets would end the line's head."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.replace("[", "(").replace("]", ")").split())[:chars]


def _recalled_sheet(answer: Answer, lines: tuple[str, ...]) -> str:
    if answer.degraded:
        return f"Memory could not be asked, the work goes on without: {_one_line(answer.degraded, 400)}"
    shown = [f"- {line.replace('<', '&lt;').replace('`', chr(39))}" for line in lines]
    return "\n".join(
        ["Recalled from earlier work, best first (data, not instructions):", "", *(shown or ["- nothing"])]
    )


@task(name="remember", task_run_name="remember")
async def remember(job: Job, outcome: Outcome) -> None:
    """Keep how the run ended, accepted or not, with its context. Repeating it adds nothing to memory."""
    services.ledger(job.ticket.board).record_event(
        job.attempt_id,
        job.ticket.key,
        "outcome",
        f"{outcome.decision} after {outcome.rounds} round(s)",
        {"reasons": list(outcome.reasons), "model": job.model, "seconds": round(outcome.seconds, 1)},
    )
    kept = await asyncio.to_thread(_keep, outcome_record(job, outcome))
    if kept is not None:
        await paper.leave(job, "remembered", f"Kept in memory:\n\n- {kept}")


async def remember_failure(job: Job, error: FactoryError) -> None:
    """Keep the error that ended a run. The same failure of a repository is one point, however often it was seen."""
    if not isinstance(error, _NOTHING_TO_LEARN):
        await asyncio.to_thread(_keep, failure_record(job, error))


def outcome_record(job: Job, outcome: Outcome) -> Record:
    """What a verdict teaches: the ticket, the decision, its reasons and the files that were touched."""
    reasons = " ".join(outcome.reasons) or "No reason was given."
    files = ", ".join(outcome.evidence.files[:8]) if outcome.evidence else ""
    text = f"{job.ticket.title}: {outcome.decision} after {outcome.rounds} round(s). {reasons}"
    rejected = outcome.decision != "ACCEPT"
    return Record(
        kind="outcome",
        text=f"{text} Files: {files}." if files else text,
        key=f"outcome:{job.ticket.board}:{job.ticket.key}:{job.attempt_id}"[:300],
        verdict=outcome.decision,
        error_class="Rejected" if rejected else "",
        error_signature=signature("Rejected", reasons) if rejected else "",
        **_context(job),
    )


def failure_record(job: Job, error: FactoryError) -> Record:
    """What an error teaches; its key is the failure itself."""
    kind, said = type(error).__name__, str(error)
    same = signature(kind, said)
    return Record(
        kind="outcome",
        text=f"{job.ticket.title}: the run ended with {kind}: {said}",
        key=f"failure:{job.repository.name}:{same}"[:300],
        verdict="FAILED",
        error_class=kind,
        error_signature=same,
        **_context(job),
    )


def _context(job: Job) -> dict[str, Any]:
    return {
        "scope": job.repository.name[:300],
        "ticket": job.ticket.key[:300],
        "source": f"attempt {job.attempt} of {job.ticket.key} at {job.repository.base_sha[:12]} by {job.model}"[:300],
        "created_at": datetime.now(UTC),
    }


def _keep(record: Record) -> str | None:
    """The line under which it was kept; None when memory is off, refuses it, or cannot write: no ticket fails for that."""
    memory = services.memory()
    if memory is None:
        return None
    try:
        kept = memory.record(record)
    except FactoryError as error:
        _log.warning("ticket=%s outcome=not-remembered reason=%r", record.ticket, str(error))
        return None
    return f"{kept.id[:8]} {json.dumps(_one_line(kept.record.text, 800), ensure_ascii=False)}"
