"""Coding a unit on a GitHub Actions runner: free compute for repositories that allow it (A7).

The runner only proposes: its patch becomes a `Change` like any coder's, and our own runner measures it. Whatever goes wrong
there costs the ticket nothing: the unit is coded here instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Literal, TypeVar

from prefect import task
from pydantic import AwareDatetime, Field, ValidationError

from infra.actions import JOB_MINUTES, Actions, ActionsRun, pack
from infra.actions.archive import unpack
from infra.errors import (
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    InfraError,
    ProviderFault,
    RateLimited,
    Unreachable,
)
from infra.github import Missing
from infra.notify import notify
from infra.redaction import redact
from infra.remotes import github_project
from infra.runner_jobs import NoRoom, RunnerJob
from infra.sections import ActionsSection
from infra.test_runners import is_test_path
from tasks import progress, services
from tasks.asking import Asker
from tasks.context import SMALL_CONTEXT_CHARS, render_prefix
from tasks.failures import Ending as RunEnding
from tasks.failures import classify, pause_until
from tasks.grants import ASK, Grant, grant_for, note_grant
from tasks.models import Brief, Change, CodeExcerpt, Ending, Frozen, Job, Policy, Usage, WorkUnit

UNIT_REQUESTS = 18
"""Questions one unit may ask the model: eight units at once stay below the 150 a day of GitHub's free tier."""
UNIT_SECONDS = 20 * 60.0
"""Of the job's 30 minutes; the rest is for setting up."""
QUEUE_MINUTES = 30
"""Longest wait for a free runner."""
CHARS_PER_TOKEN = 3.5
PROMPT_SHARE = 0.7
"""Of a request's tokens; the rest is for the tools and what they return."""
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 5.0, 60.0
LOOKS = 5
"""How often a run that GitHub gave no number for is looked for."""
FETCH_SECONDS = 180.0

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class _NotThere(InfraError):
    """The runners cannot see the base commit: it was not pushed."""


class RunnerUnit(Frozen):
    """What a runner is told. `laid` are files (path -> text, None: deleted) over the base commit: tests and earlier work."""

    version: Literal[1] = 1
    id: str = Field(pattern=r"^[0-9a-f]{24}$")
    base_sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    message: str
    model: str
    context_tokens: int
    steps: int
    seconds: float
    policy: Policy
    grant: Grant
    prompt: str
    laid: dict[str, str | None]
    nonce: str
    seed: int


class Spent(Frozen):
    """Usage as a stranger states it: bounded, and without a price."""

    prompt_tokens: int = Field(default=0, ge=0, le=10**8)
    cached_tokens: int = Field(default=0, ge=0, le=10**8)
    completion_tokens: int = Field(default=0, ge=0, le=10**8)
    calls: int = Field(default=0, ge=0, le=10**4)
    seconds: float = Field(default=0, ge=0, le=JOB_MINUTES * 60, allow_inf_nan=False)


class RunnerReport(Frozen):
    """How the agent on the runner ended; `ending` None: it could not work, for the reason in `error`."""

    ending: Ending | None = None
    explanation: str = Field(default="", max_length=400)
    steps: int = Field(default=0, ge=0, le=10**4)
    spent: Spent = Spent()
    error: str = Field(default="", max_length=2_000)
    category: str = Field(default="", max_length=40)
    reset_at: AwareDatetime | None = None


def section_of(repository: str) -> ActionsSection | None:
    """The runners of a configured repository; None: it has none, or they would not see its code."""
    configured = services.settings().repositories.get(repository)
    section = configured.actions if configured else None
    if configured is None or section is None or section.model == "embedded":
        return None
    project = project_of(repository)
    return section if project is not None and (project == section.project or configured.public) else None


def project_of(repository: str) -> str | None:
    """`owner/name` of a configured repository on GitHub."""
    configured = services.settings().repositories[repository]
    return configured.github.project if configured.github else github_project(configured.remote or "")


def pause_scope(section: ActionsSection) -> str:
    """The name under which these runners are paused; `darkfactory resume` ends it."""
    return f"provider:actions@{section.project}"


def fits(job: Job) -> str | None:
    """Why this job's units are not coded on runners now; None: they may be. Asks nobody but the database."""
    section = section_of(job.repository.name)
    if section is None:
        return "the repository has no runners"
    if pause := services.pauses().active().get(pause_scope(section)):
        return f"the runners are paused: {pause.reason}"
    try:
        services.runner_jobs().check_room(section, minutes=JOB_MINUTES, requests=UNIT_REQUESTS)
    except NoRoom as full:
        return str(full)
    return None


async def code_on_runner(
    job: Job, brief: Brief, unit: WorkUnit, asker: Asker, *, instruction: str, laid: Mapping[str, str | None], key: str
) -> Change | None:
    """The unit's change, made on a runner; None: it has to be coded here. `key` names the work, which is done there once.

    Only a database that is away raises.
    """
    section = section_of(job.repository.name)
    if section is None:
        return None
    grant = grant_for(job, "coder", brief.policy, unit)
    told = _told(job, brief, section, grant, instruction, laid, key)
    if why := await asyncio.to_thread(_refusal, job, section, told):
        _log.info("ticket=%s unit=%s runner=no reason=%r", job.ticket.key, unit.id, why)
        return None
    try:
        change = await _coded(job, brief, section, told, unit.id, asker)
    except asyncio.CancelledError:
        await _abandon(section, told.id, "the run was stopped")
        raise
    except FactoryError as error:
        _log.warning("ticket=%s unit=%s runner=failed reason=%r", job.ticket.key, unit.id, redact(str(error)))
        await _abandon(section, told.id, str(error))
        await asyncio.to_thread(_rest, section, error)
        return None
    await asyncio.to_thread(services.pauses().succeed, pause_scope(section))
    return change


def _told(
    job: Job,
    brief: Brief,
    section: ActionsSection,
    grant: Grant,
    instruction: str,
    laid: Mapping[str, str | None],
    key: str,
) -> RunnerUnit:
    """`grant` is the coder's; nobody is there to answer its questions."""
    return RunnerUnit(
        id=hashlib.sha256(f"{section.model} {key}".encode()).hexdigest()[:24],
        base_sha=job.repository.base_sha,
        message=grant.unit,
        model=section.model,
        context_tokens=section.context_tokens,
        steps=UNIT_REQUESTS,
        seconds=UNIT_SECONDS,
        policy=brief.policy,
        grant=grant.model_copy(update={"tools": grant.tools - {ASK}}),
        prompt=f"{_prefix(brief)}\n\n---\n{instruction}",
        laid=dict(laid),
        nonce=brief.nonce,
        seed=job.seed,
    )


def _prefix(brief: Brief) -> str:
    """The brief without memories, which stay here, and with little code: the agent can read the rest itself."""
    return render_prefix(
        ticket=brief.ticket,
        repository=brief.repository.name,
        policy=brief.policy,
        rules=brief.rules,
        excerpts=_first(brief.excerpts, SMALL_CONTEXT_CHARS),
        memories=(),
        baseline=brief.baseline,
        nonce=brief.nonce,
        answers=brief.answers,
    )


def _first(excerpts: tuple[CodeExcerpt, ...], limit_chars: int) -> tuple[CodeExcerpt, ...]:
    kept: list[CodeExcerpt] = []
    for excerpt in excerpts:
        limit_chars -= len(excerpt.text)
        if limit_chars < 0:
            break
        kept.append(excerpt)
    return tuple(kept)


def _refusal(job: Job, section: ActionsSection, told: RunnerUnit) -> str | None:
    """Why this unit is not coded on a runner; None: it is. One that was begun there is not begun again."""
    if known := services.runner_jobs().find(told.id):
        return f"it failed there: {known.reason}" if known.state == "failed" else None
    if len(told.prompt) > section.context_tokens * PROMPT_SHARE * CHARS_PER_TOKEN:
        return f"its prompt of {len(told.prompt)} characters is too long for {section.context_tokens} tokens"
    text = told.model_dump_json()
    if redact(text) != text:
        return "it holds something that looks like a secret"
    return fits(job)


async def _coded(job: Job, brief: Brief, section: ActionsSection, told: RunnerUnit, unit: str, asker: Asker) -> Change:
    """Reserve, run, fetch, settle, apply. Every line may be the last one of this process: the next one goes on from there."""
    payload = pack(told.model_dump_json())
    reserve = partial(services.runner_jobs().reserve, told.id, section, board=job.ticket.board, ticket=job.ticket.key)
    row, fresh = await asyncio.to_thread(reserve, minutes=JOB_MINUTES, requests=UNIT_REQUESTS)
    await asyncio.to_thread(note_grant, job, told.grant)
    archive = await asyncio.to_thread(services.objects().get, _object(row))
    if archive is None:
        with progress.may_be_silent((JOB_MINUTES + QUEUE_MINUTES) * 60 + FETCH_SECONDS):
            archive = await _fetched(job, site(section), row, fresh, payload, asker)
    report, patch = await _settled(section, row, archive)
    if report.ending is None:
        raise _failure(report)
    usage = Usage.model_validate(report.spent.model_dump())
    record = partial(services.ledger(job.ticket.board).record_session, job.attempt_id, f"unit-{row.id}", "coder", usage)
    await asyncio.to_thread(record, section.model, asker.candidate, asker.round)
    files = await _applied(brief, row.id, patch, told.laid)
    return Change(unit=unit, candidate=asker.candidate, round=asker.round, files=files, explanation=report.explanation,
                  ending=report.ending if files or report.ending != "done" else "unchanged", samples=report.steps,
                  passed=report.ending == "done", usage=usage)  # fmt: skip


async def _settled(section: ActionsSection, row: RunnerJob, archive: bytes) -> tuple[RunnerReport, bytes]:
    """Report and patch of a unit, whose job is ended with what it used."""
    files = unpack(archive)
    report = _report(files.report)
    state: Literal["done", "failed"] = "failed" if report.ending is None else "done"
    minutes, settle = await _minutes(site(section), row.id), services.runner_jobs().settle
    await asyncio.to_thread(partial(settle, row.id, state, minutes=minutes, requests=report.spent.calls, reason=report.error))  # fmt: skip
    return report, files.patch


@cache
def site(section: ActionsSection) -> Actions:
    """The line to these runners, one for all units of this process: its requests take turns."""
    return Actions(section)


async def _fetched(job: Job, there: Actions, row: RunnerJob, fresh: bool, payload: str, asker: Asker) -> bytes:
    """The archive that the unit's run left, kept among the objects before anything else is done with it."""
    now = await asyncio.to_thread(services.runner_jobs().now)
    left = (row.reserved_at - now + timedelta(minutes=JOB_MINUTES + QUEUE_MINUTES)).total_seconds()
    ends = time.monotonic() + left
    number = row.run or await _started(job, there, row, fresh, payload, ends)
    progress.report(job.ticket.key, role=asker.label, message=f"on a runner of {there.section.project}, run {number}")
    run = await _watched(there, number, ends)
    fetch = partial(there.artifact, number, row.id)
    try:
        archive = await _patiently(fetch, max(ends, time.monotonic() + FETCH_SECONDS))
    except ProviderFault as error:
        raise ProviderFault(f"the run ended with {run.conclusion!r} ({run.url}): {error}") from error
    await asyncio.to_thread(services.objects().put, _object(row), archive)
    return archive


async def _started(job: Job, there: Actions, row: RunnerJob, fresh: bool, payload: str, ends: float) -> int:
    """GitHub's number of the unit's run. A dispatch that nobody heard the answer to is looked for, never repeated."""
    number = None if fresh else await _found(there, row, ends, looks=1)
    if number is None:
        project = project_of(job.repository.name) or ""
        if not await _patiently(partial(there.has_commit, project, job.repository.base_sha), ends):
            raise _NotThere(f"the commit {job.repository.base_sha[:12]} is not in {project!r}")
        try:
            number = await asyncio.to_thread(there.dispatch, row.id, project, job.repository.base_sha, payload)
        except Unreachable as error:
            _log.warning("unit=%s dispatch=unanswered reason=%r", row.id, str(error))
        number = number or await _found(there, row, ends, looks=LOOKS)
    if number is None:
        raise CapacityUnavailable(f"GitHub shows no run of the unit {row.id}; try again later")
    await asyncio.to_thread(services.runner_jobs().started, row.id, number)
    return number


async def _found(there: Actions, row: RunnerJob, ends: float, *, looks: int) -> int | None:
    """The number of the unit's run by its title. A new run takes some seconds to be listed."""
    for look in range(1, looks + 1):
        run = await _patiently(partial(there.find, row.id, row.reserved_at - timedelta(minutes=5)), ends)
        if run is not None:
            return run.id
        if look < looks:
            await asyncio.sleep(_jittered(FIRST_POLL_SECONDS))
    return None


async def _watched(there: Actions, number: int, ends: float) -> ActionsRun:
    """The run, once it is over. Raises CapacityUnavailable when that takes too long."""
    pause = FIRST_POLL_SECONDS
    while (run := await _patiently(partial(there.run, number), ends)).conclusion is None:
        if time.monotonic() + pause > ends:
            raise CapacityUnavailable(f"the run {run.url} did not end in time")
        await asyncio.sleep(_jittered(pause))
        pause = _longer(pause)
    return run


async def _patiently(ask: Callable[[], Answer], ends: float) -> Answer:
    """GitHub's answer, asked for again while it is away or wants to be left alone, until `ends` (monotonic)."""
    pause = FIRST_POLL_SECONDS
    while True:
        try:
            return await asyncio.to_thread(ask)
        except (RateLimited, Unreachable) as error:
            reset_at = error.reset_at if isinstance(error, RateLimited) else None
            wait = _jittered(pause) + max(0.0, (reset_at - datetime.now(UTC)).total_seconds() if reset_at else 0.0)
            if time.monotonic() + wait > ends:
                raise
        await asyncio.sleep(wait)
        pause = _longer(pause)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.7, 1.3)  # noqa: S311  it only keeps many waiters apart


def _longer(seconds: float) -> float:
    return min(seconds * 1.5, LONGEST_POLL_SECONDS)


def _report(data: bytes) -> RunnerReport:
    try:
        return RunnerReport.model_validate_json(data)
    except ValidationError as error:
        raise ProviderFault(f"a unit's report cannot be used: {error.error_count()} mistake(s) in it") from None


def _failure(report: RunnerReport) -> InfraError:
    """What stopped the runner's agent, as the error it would have been here."""
    if report.category == RateLimited.category:
        return RateLimited(f"on the runner: {report.error}", report.reset_at)
    return CapacityUnavailable(f"on the runner: {report.error}")


async def _minutes(there: Actions, id: str) -> int | None:
    """What GitHub bills for the unit's run; None: it did not say, or there is no run."""
    row = await asyncio.to_thread(services.runner_jobs().find, id)
    if row is None or row.run is None:
        return None
    try:
        return await asyncio.to_thread(there.minutes, row.run)
    except InfraError:
        return None


async def _applied(brief: Brief, id: str, patch: bytes, laid: Mapping[str, str | None]) -> dict[str, str | None]:
    """The files that the patch changes, as a coder's change names them: tests it was given are not part of it.

    Git applies it in the sandbox, to a fresh checkout of the base commit. Raises ProviderFault when it does not fit.
    """
    if not patch:
        return {}
    mirror, sandbox, base = services.mirror(brief.repository), services.sandbox(), brief.repository.base_sha
    with mirror.worktree(services.worktrees(), brief.ticket.key, f"runner-{id}", base) as worktree:
        done = await sandbox.run(
            ["git", "apply", "--whitespace=nowarn", "-"],
            worktree=worktree.path,
            stdin=patch,
            binds=worktree.git_binds(),
        )
        if done.exit_code != 0:
            raise ProviderFault(f"the runner's patch does not apply: {done.output.strip()[-300:]!r}")
        head = await worktree.commit(sandbox, f"{brief.ticket.key} by a runner")
    paths = {path for file in mirror.changed(base, head) for path in (file.previous, file.path) if path is not None}
    own = sorted(path for path in paths if not (path in laid and is_test_path(path)))
    contents = {path: mirror.read(head, path) for path in own}
    return {path: raw.decode(errors="replace") if raw is not None else None for path, raw in contents.items()}


async def _abandon(section: ActionsSection, id: str, reason: str) -> None:
    """End the unit's run, if it has one, and its job. What cannot be told now the janitor tells later."""
    try:
        await asyncio.to_thread(_end, site(section), id, reason)
    except FactoryError as error:
        _log.warning("unit=%s runner=not-ended reason=%r", id, redact(str(error)))


def _end(there: Actions, id: str, reason: str) -> None:
    row = services.runner_jobs().find(id)
    if row is None or row.state != "open":
        return
    run = _seen(there, row)
    used: int | None = 0 if row.run is None and run is None else None
    if run is not None and run.conclusion is None:
        there.cancel(run.id)
    minutes = there.minutes(run.id) if run is not None and run.conclusion is not None else used
    services.runner_jobs().settle(id, "failed", minutes=minutes, requests=used, reason=reason)


def _seen(there: Actions, row: RunnerJob) -> ActionsRun | None:
    """The job's run as it stands; None: it was never started, or somebody deleted it."""
    if row.run is None:
        return there.find(row.id, row.reserved_at - timedelta(minutes=5))
    try:
        return there.run(row.run)
    except Missing:
        return None


@task(name="end lost units", task_run_name="end lost units")
async def end_lost_units() -> int:
    """End the runs of tickets that nobody works on any more, and of units that take too long: their process was killed."""
    return await asyncio.to_thread(_end_lost)


def _end_lost() -> int:
    jobs, ended = services.runner_jobs(), 0
    oldest = jobs.now() - timedelta(minutes=JOB_MINUTES + QUEUE_MINUTES + 10)
    sections = {
        each.actions.project: each.actions for each in services.settings().repositories.values() if each.actions
    }
    for row in jobs.open_jobs():
        claim = services.claims().find(row.board, row.ticket)
        awaited = claim is not None and claim.state not in ("released", "parked")
        if awaited and row.reserved_at > oldest:
            continue
        try:
            if section := sections.get(row.project):
                _end(site(section), row.id, "nobody waits for it any more")
        except FactoryError as error:
            _log.warning("board=%s ticket=%s unit=%s runner=not-ended reason=%r", row.board, row.ticket, row.id, redact(str(error)))  # fmt: skip
            if row.reserved_at > oldest:
                continue
        jobs.settle(row.id, "failed", minutes=None, requests=None, reason="its runner cannot be asked any more")
        ended += 1
    return ended


def _object(row: RunnerJob) -> str:
    return f"units/{row.id}.zip"


def _rest(section: ActionsSection, error: FactoryError) -> None:
    """Leave the runners alone for a while, when it is they that failed; until a person acts, when only that helps."""
    scope, pauses, now = pause_scope(section), services.pauses(), services.claims().now()
    fault = classify(RunEnding(seconds=0, error=error, provider=scope), now)
    needs_person = isinstance(error, ConfigError)
    if isinstance(error, NoRoom) or (fault.scope != "provider" and not needs_person):
        return
    until = None if needs_person else pause_until(fault, now, pauses.times(scope))
    if pauses.pause(scope, fault.reason, until):
        when = f"until {until:%Y-%m-%d %H:%M} UTC" if until else f"until `darkfactory resume {scope}`"
        text = f"{fault.reason}; {when}; units are coded on the nodes meanwhile"
        notify(services.settings().notify, f"{scope} is paused", text, key=f"pause:{scope}")
