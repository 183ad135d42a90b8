"""The session learner (L1): failures that come back are pointed out to the next attempt of their kind, and counted.

A kind is repository, intent and effort; three attempts that fail alike make a correction. Its words are made by rule from
what tests, scanners and our own rules said. They quote output that may be hostile, so each is one bounded line inside the
ticket's fence, and only our own sentences stand outside of it. What ends an attempt without judging its work (machines,
providers, limits, budgets, kills) teaches nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from infra.errors import LimitReached, TestsFailed, WorkFailed
from infra.lessons import MOST_ACTIVE, Correction, Failure, Kind, Shown
from infra.memory import SHORT_CHARS, Mark, Record
from infra.memory.records import Refused, admit, point_id, signature
from tasks import paper, services
from tasks.context import fenced
from tasks.corpus import drop_lesson, keep_lesson
from tasks.intents import intent_of
from tasks.models import Brief, Evidence, FactoryError, Finding, Job, Plan, Result, TestReport

TOLD_CHARS = 600
"""Of all corrections in a prompt together: about 200 tokens, at 3 characters each (`tasks.memory.CHARS_PER_TOKEN`)."""
LINE_CHARS = 300
MOST_FAILURES = 10
"""Ways to fail that one round may teach: a change that breaks everything says little about each."""
REMEDY_LINES, REMEDY_CHARS = 2, 160
FIRST_WORDS = "The change has to pass these checks too, which refused earlier changes (quoted output, data):"
_log = logging.getLogger(__name__)
_NOT_OF_THE_WORK = (LimitReached, TestsFailed)
"""Ends of an attempt that its coder did not cause: our own bounds, and tests that say nothing."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
_HASH = re.compile(r"[0-9a-f]{7,}")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")


def kind_of(job: Job, plan: Plan) -> Kind:
    """What this attempt's failures are compared with."""
    return Kind(repository=job.repository.name, intent=intent_of(job.ticket), effort=plan.effort)


def attempt_of(job: Job) -> str:
    """The attempt as counts know it: the same after a kill and after a fault that burnt nothing, when answers are replayed."""
    return f"{job.ticket.board}:{job.ticket.key}:{job.thought}"


def is_on() -> bool:
    return services.settings().learning.corrections


async def with_corrections(job: Job, brief: Brief, plan: Plan) -> Brief:
    """The brief with what earlier attempts of this kind failed in; the sheet `corrections` shows it.

    Chosen once for an attempt and written down first, so that a run which is resumed asks the same.
    """
    if not is_on():
        return brief
    shown = await asyncio.to_thread(services.lessons().brief, attempt_of(job), kind_of(job, plan), in_words)
    if not shown:
        return brief
    await paper.leave(job, "corrections", await asyncio.to_thread(_as_markdown, shown))
    return brief.model_copy(update={"corrections": rendered(shown, brief.nonce)})


def in_words(corrections: Sequence[Correction]) -> list[Shown]:
    """One line for each, best first: at most MOST_ACTIVE, TOLD_CHARS together."""
    told = corrections[:MOST_ACTIVE]
    chars = min(LINE_CHARS, TOLD_CHARS // max(len(told), 1))
    return [Shown(correction=each.id, text=said(each)[:chars]) for each in told]


def said(correction: Correction) -> str:
    """A correction on one line: what failed, how often, and what helped where that is known."""
    remedy = f" An accepted change has: {correction.remedy}" if correction.remedy else ""
    return f"{correction.message} (refused {correction.seen} changes){remedy}"


def rendered(shown: Sequence[Shown], nonce: str) -> str:
    """What a prompt holds between its shared prefix and the role's instruction."""
    lines = "\n".join(f"- {each.text}" for each in shown)
    return f"{FIRST_WORDS}\n{fenced(lines, nonce)}"


async def learn(job: Job, plan: Plan, evidence: Evidence) -> None:
    """Note what the judged change of a round failed in, each way once in an attempt."""
    await _note(job, plan, list(dict.fromkeys(failures_in(evidence)))[:MOST_FAILURES])


@asynccontextmanager
async def learning_from_failure(job: Job, plan: Plan) -> AsyncIterator[None]:
    """Work inside whose own failure (WorkFailed) is noted and ends the attempt; every other error passes through."""
    try:
        yield
    except WorkFailed as error:
        if is_on() and not isinstance(error, _NOT_OF_THE_WORK):
            name = type(error).__name__
            await _note(job, plan, [Failure(pattern=pattern(name, str(error)), message=f"{name}: {error}")])
            await asyncio.to_thread(services.lessons().settle, attempt_of(job), accepted=False)
        raise


async def settle(job: Job, result: Result) -> None:
    """Count how the corrections of this attempt did, then hand what proved itself to shared memory and to the corpus."""
    if not is_on():
        return
    accepted = result.verdict.decision == "ACCEPT"
    remedy = await asyncio.to_thread(remedy_in, job, result) if accepted else ""
    await asyncio.to_thread(services.lessons().settle, attempt_of(job), accepted=accepted, remedy=remedy)
    for each in await asyncio.to_thread(services.lessons().untold):
        await _tell(each)


async def _note(job: Job, plan: Plan, failures: Sequence[Failure]) -> None:
    if is_on() and failures:
        await asyncio.to_thread(services.lessons().note, attempt_of(job), kind_of(job, plan), failures)


# ---- what failed ------------------------------------------------------------------------------------------------


def pattern(failure: str, message: str, subject: str = "") -> str:
    """What two equal failures have in common: their class, the test or rule, and the message's plain words.

    Paths, numbers, hashes, code and quoted values differ from change to change and are left out.
    """
    return signature(failure, f"{subject} {plain(message)}".strip())


def plain(message: str) -> str:
    """The words of a message's first line that are no code, no path and no quoted value."""
    bare = _QUOTED.sub(" ", message.strip().partition("\n")[0])
    tokens = (token.strip(".,:;!?") for token in bare.split())
    return " ".join(token.lower() for token in tokens if _WORD.fullmatch(token) and not _HASH.fullmatch(token))


def failures_in(evidence: Evidence) -> Iterator[Failure]:
    """Every way in which evidence speaks against a change."""
    for test in evidence.broken:
        if test != "suite":  # of a bare exit code, which says nothing that could come back
            yield _broken(test, evidence.after)
    for test in evidence.still_red:
        yield from _still_red(test, evidence.new_tests_after)
    for finding in evidence.findings:
        if finding.new and finding.severity in ("critical", "high"):
            yield _found(finding)
    for violation in evidence.violations:
        yield Failure(pattern=pattern("violation", violation), message=violation)


def _broken(test: str, report: TestReport) -> Failure:
    """A test of the repository; its name is a part of the pattern, its parameters are not. A test that is gone because its
    file could not be loaded failed by what the file says."""
    name, file = test.partition("[")[0], re.split("::| > ", test, maxsplit=1)[0]
    reason = _reason(test, report)
    if not reason and (reason := _reason(file, report)):
        name = file
    message = f"{name} failed: {reason}" if reason else f"{name} passed before and did not pass"
    return Failure(pattern=pattern(f"broken {_class(reason)}".strip(), reason, name), message=message)


def _still_red(test: str, report: TestReport | None) -> Iterator[Failure]:
    """A new test belongs to its ticket: only what its error says can come back, and a bare comparison says nothing."""
    reason = _reason(test, report) if report is not None else ""
    words = plain(reason).split()
    if words and (_class(reason) not in ("", "AssertionError") or len(words) > len("assert not equal".split())):
        yield Failure(
            pattern=pattern(f"still red {_class(reason)}".strip(), reason), message=f"a new test failed: {reason}"
        )


def _found(finding: Finding) -> Failure:
    name = f"{finding.source} {finding.rule}".strip()
    return Failure(pattern=pattern("finding", finding.message, name), message=f"{name}: {finding.message}")


def _reason(test: str, report: TestReport) -> str:
    """`Exception: message` on one line, as the test runner told it."""
    return report.reasons.get(test, "").strip().partition("\n")[0]


def _class(reason: str) -> str:
    return reason.partition(":")[0] if re.match(r"[\w.]+:", reason) else ""


# ---- what helped ------------------------------------------------------------------------------------------------


def remedy_in(job: Job, result: Result) -> str:
    """The first lines that the accepted change has and the one refused before it had not; empty without such a one."""
    if not result.refused:
        return ""
    mirror, base = services.mirror(job.repository), job.repository.base_sha
    before = set(_added(mirror.diff(base, result.refused[-1].head_sha)))
    new = [line for line in _added(result.evidence.diff) if line not in before]
    return " / ".join(new[:REMEDY_LINES])[:REMEDY_CHARS]


def _added(diff: str) -> list[str]:
    """Lines of code that a patch adds, without those that hold no word."""
    added = (line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++"))
    return [line for line in added if re.search(r"\w", line)]


async def _tell(correction: Correction) -> None:
    """What proved itself goes into shared memory, where other repositories find it, and into the corpus; what was retired
    later leaves both. They know it by its key."""
    record, retired = _lesson(correction), correction.state == "retired"
    if await asyncio.to_thread(_remember, record, retired):
        if retired:
            await drop_lesson(record.key, correction.repository)
        else:
            await keep_lesson(record.text, record.key, correction.repository)
        await asyncio.to_thread(services.lessons().mark_told, correction)


def _lesson(correction: Correction) -> Record:
    text = f"When a change is a {correction.intent} of effort {correction.effort}: {said(correction)}"
    return Record(
        kind="lesson", text=text, scope=correction.repository[:SHORT_CHARS], key=_key(correction), confirmed=True,
        error_class=correction.pattern.partition(":")[0][:SHORT_CHARS], error_signature=correction.pattern[:SHORT_CHARS],
        source=f"correction {correction.id}", a=1.0 + correction.ok, b=1.0 + correction.failed,
        created_at=datetime.now(UTC),
    )  # fmt: skip


def _key(correction: Correction) -> str:
    return f"lesson:{correction.repository}:{correction.intent}:{correction.effort}:{correction.pattern}"[:SHORT_CHARS]


def _remember(record: Record, retired: bool) -> bool:
    """Whether memory needs not be asked again: it knows, is off, or says that the text is no knowledge."""
    memory = services.memory()
    try:
        if memory is not None:
            kept = admit(record)
            memory.write(_archived(kept) if retired else kept)
    except Refused:
        return True
    except FactoryError as error:
        _log.warning("lesson=%s outcome=not-remembered reason=%r", record.key, str(error))
        return False
    return True


def _archived(kept: Record) -> Mark:
    return Mark(
        kind="archived",
        points=(point_id(kept),),
        source=f"{kept.source} was retired"[:SHORT_CHARS],
        at=datetime.now(UTC),
    )


def _as_markdown(shown: Sequence[Shown]) -> str:
    """What was told, with what is known about each by now."""
    lines = []
    for each in shown:
        known = services.lessons().find(each.correction)
        text = each.text.replace("<", "&lt;").replace("`", "'").replace("[", "(").replace("]", ")")
        lines.append(
            f"- {known.id}: {text} | told to {known.applied}, {known.ok} went well, {known.failed} failed so again"
        )
    head = "Told to coder and testers, between the memories and the task (quoted output, data):"
    return "\n".join([head, "", *lines])
