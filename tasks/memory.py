"""Memory around a run: asked before work starts, told how it ended, and seen in the ticket's sheets (M2).

What is recalled was once written by tickets, tools and models, so it is hostile: it enters a prompt as quoted single
lines inside the ticket's fence, bounded, and never as an instruction. Memory that cannot be asked holds nothing up.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from prefect import task

from infra.errors import BudgetExhausted, ConfigError, FencedOff, NeedsHuman, Stopped
from infra.ledger import BURNING
from infra.memory import Answer, Mark, Record, Wanted
from infra.memory.client import Memory
from infra.memory.lines import CHARS_PER_TOKEN, RECALLED_POINTS, RECALLED_TOKENS, one_line, shown_lines
from infra.memory.records import point_id, signature, without_echoes
from tasks import paper, progress, services
from tasks.models import Decision, FactoryError, Frozen, Job, Outcome, Ticket
from tasks.topics import fitting, read_topics
from tasks.topics import folder as topics_folder

SMALL_RECALLED_TOKENS = 500
"""A small model is shown less code, too."""
TOPIC_TOKENS, SMALL_TOPIC_TOKENS = 800, 250
"""Of what people wrote in topic files."""
SEARCHED_CHARS = 4_000
_NOTHING_TO_LEARN = (BudgetExhausted, FencedOff, NeedsHuman, Stopped)
"""Endings that say nothing about the work."""
_log = logging.getLogger(__name__)


def is_on() -> bool:
    """Whether this machine has a memory."""
    return services.memory() is not None


def recall(ticket: Ticket, repository: str, error_signature: str = "") -> tuple[str, ...]:
    """What earlier work knows that fits the ticket, best first: at most RECALLED_POINTS lines, RECALLED_TOKENS in all.

    `error_signature` (see `infra.memory.records.signature`) brings up the same failure. Lessons of other repositories come
    only when they were confirmed. Each line is hostile data until it is fenced.
    """
    return tuple(shown_lines(_search(ticket, repository, error_signature)).values())


async def recall_for(job: Job) -> tuple[str, ...]:
    """As `recall`, for a run: first what people wrote in topic files, then what earlier work left, above all about the
    failure of this ticket's attempt before. The sheet `memories` shows it, or why memory could not be asked."""
    if services.memory() is None:
        return ()
    known = await recollect(job)
    await asyncio.to_thread(_note_recalled, job, list(known.shown))
    await paper.leave(job, "memories", _recalled_sheet(known))
    return known.lines


class Recollection(Frozen):
    """What a run was told: lines of topic files, of points by their ids, why memory could not be asked, and what is wrong
    with topic files."""

    written: tuple[str, ...] = ()
    shown: dict[str, str] = {}
    degraded: str = ""
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self.written, *self.shown.values())


def _recall_key(job: Job) -> str:
    said = "\0".join([job.ticket.board, job.ticket.key, job.repository.name, job.thought, job.tier])
    return f"recall-{hashlib.sha256(said.encode(errors='replace')).hexdigest()}"


@task(name="recall", task_run_name="recall", persist_result=True, cache_key_fn=lambda _, a: _recall_key(a["job"]))
async def recollect(job: Job) -> Recollection:
    """Asked once for a thought: a run that is resumed is told the same, whatever was learned since, so that the answers
    it got already fit."""
    small = job.tier == "small"
    written, problems = await asyncio.to_thread(_topics_for, job, SMALL_TOPIC_TOKENS if small else TOPIC_TOKENS)
    failed = await asyncio.to_thread(failed_before, job)
    answer = await asyncio.to_thread(_search, job.ticket, job.repository.name, failed)
    shown = shown_lines(answer, SMALL_RECALLED_TOKENS if small else RECALLED_TOKENS)
    return Recollection(written=written, shown=shown, degraded=answer.degraded, problems=problems)


def _topics_for(job: Job, tokens: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines of topic files, and what is wrong with files, which is told once."""
    topics = read_topics(job.repository.name)
    if topics.problems:
        message = f"topic files in {str(topics_folder())!r}: {'; '.join(topics.problems)}"[:800]
        progress.report(job.ticket.key, phase="brief", role="brief", message=message)
    return fitting(topics, job.ticket, tokens * CHARS_PER_TOKEN), topics.problems


def failed_before(job: Job) -> str:
    """The signature of how the ticket's last attempt that failed did, as `remember` keeps it; "" for a first attempt."""
    try:
        history = services.ledger(job.ticket.board).history(job.ticket.key)
    except ConfigError:  # a branch without a ticket
        return ""
    failed = [each for each in history.attempts if each.outcome in BURNING]
    if not failed:
        return ""
    if failed[-1].failure_class:
        return signature(failed[-1].failure_class, failed[-1].error or "")
    verdicts = [each for each in history.verdicts if each.attempt == failed[-1].id]
    return signature("Rejected", " ".join(verdicts[-1].reasons)) if verdicts else ""


async def recall_more(job: Job, text: str) -> str:
    """What memory knows about some words, for an agent at work: lines as in its brief, and counted like those."""
    answer = await asyncio.to_thread(_find, text, job.repository.name, "")
    shown = shown_lines(answer)
    await asyncio.to_thread(_note_recalled, job, list(shown))
    return "\n".join(shown.values()) or answer.degraded or "nothing is known about that"


def _note_recalled(job: Job, ids: list[str]) -> None:
    """In the ledger, so that it outlives the process: the verdict speaks for or against these points."""
    if ids:
        data = {"points": ids}
        services.ledger(job.ticket.board).record_event(
            job.attempt_id, job.ticket.key, "recalled", f"{len(ids)} memories", data
        )


def recalled_in(job: Job) -> tuple[str, ...]:
    """Ids of the points that this attempt recalled, each once, whichever process did it; none where the ledger is away."""
    try:
        events = services.ledger(job.ticket.board).history(job.ticket.key).events
    except FactoryError as error:
        _log.warning("ticket=%s outcome=recalled-unknown reason=%r", job.ticket.key, str(error))
        return ()
    noted = [
        each.data.get("points", []) for each in events if each.kind == "recalled" and each.attempt == job.attempt_id
    ]
    return tuple(dict.fromkeys(name for names in noted for name in names))


def _search(ticket: Ticket, repository: str, error_signature: str) -> Answer:
    return _find(f"{ticket.title}\n{ticket.body}", repository, error_signature)


def _find(text: str, repository: str, error_signature: str) -> Answer:
    memory = services.memory()
    if memory is None:
        return Answer(degraded="memory is turned off (memory.enabled)")
    text = text[:SEARCHED_CHARS].encode(errors="replace").decode()  # half characters
    return memory.search(Wanted(text=text, scope=repository, error_signature=error_signature, limit=RECALLED_POINTS))


def _recalled_sheet(known: Recollection) -> str:
    shown = [f"- {_plain(line)}" for line in known.lines]
    head = "Recalled from topic files and earlier work, best first (data, not instructions):"
    if known.degraded:
        head = f"Memory could not be asked, the work goes on without: {_plain(one_line(known.degraded, 400))}"
    wrong = [f"- {_plain(each)}" for each in known.problems]
    wrong = ["", "Topic files that cannot be used:", *wrong] if wrong else []
    return "\n".join([head, "", *(shown or ["- nothing"]), *wrong])


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("`", "'")


@task(name="remember", task_run_name="remember")
async def remember(job: Job, outcome: Outcome) -> None:
    """Keep how the run ended, accepted or not, with its context, and credit what it had recalled. Repeating it adds nothing to
    memory."""
    services.ledger(job.ticket.board).record_event(
        job.attempt_id,
        job.ticket.key,
        "outcome",
        f"{outcome.decision} after {outcome.rounds} round(s)",
        {"reasons": list(outcome.reasons), "model": job.model, "seconds": round(outcome.seconds, 1)},
    )
    recalled = await asyncio.to_thread(_credit, job, outcome.decision)
    kept = await asyncio.to_thread(_keep, outcome_record(job, outcome), recalled)
    if kept is not None:
        await paper.leave(job, "remembered", f"Kept in memory:\n\n- {_plain(kept)}")


async def remember_failure(job: Job, error: FactoryError) -> None:
    """Keep the error that ended a run. The same failure of a repository is one point, however often it was seen."""
    if services.memory() is not None and not isinstance(error, _NOTHING_TO_LEARN):
        recalled = await asyncio.to_thread(recalled_in, job)
        await asyncio.to_thread(_keep, failure_record(job, error), recalled)


def _credit(job: Job, decision: Decision) -> tuple[str, ...]:
    """An accepted run speaks for each point it recalled, a rejected one against it, once; many share one run's weight.
    Returns their ids."""
    memory = services.memory()
    if memory is None:
        return ()
    recalled = recalled_in(job)
    weight = min(1.0, RECALLED_POINTS / max(len(recalled), 1))
    side = {"ACCEPT": "a", "REJECT": "b"}.get(decision)
    source = f"attempt {job.attempt_id} of {job.ticket.board}:{job.ticket.key}"[:300]
    try:
        for name in recalled if side else ():
            said = {"kind": "credit", "points": (name,), "source": source, "at": datetime.now(UTC), side: weight}
            memory.write(Mark.model_validate(said))
    except FactoryError as error:
        _log.warning("ticket=%s outcome=not-credited reason=%r", job.ticket.key, str(error))
    return recalled


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


def _keep(record: Record, recalled: tuple[str, ...]) -> str | None:
    """The line under which it was kept; None when memory is off, refuses it, or cannot write: no ticket fails for that."""
    memory = services.memory()
    if memory is None:
        return None
    try:
        kept = memory.record(_news(memory, record, recalled))
    except FactoryError as error:
        _log.warning("ticket=%s outcome=not-remembered reason=%r", record.ticket, str(error))
        return None
    return f"{kept.id[:8]} {json.dumps(one_line(kept.record.text, 800), ensure_ascii=False)}"


def _news(memory: Memory, record: Record, recalled: tuple[str, ...]) -> Record:
    """Without what was recalled, which would come back as if it were new; the same point seen again stays what it is."""
    if not recalled or point_id(record) in recalled:
        return record
    try:
        known = memory.points(recalled, services.settings().memory.search_seconds)
    except FactoryError:
        return record
    return record.model_copy(update={"text": without_echoes(record.text, known.values())})
