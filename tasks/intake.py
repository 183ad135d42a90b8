"""Intake: finds ticket and repository, pins the base commit, opens the attempt, and writes the brief."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import task

from infra.errors import ConfigError, DiskFull, FactoryError, InfraError, TestsFailed, WorkFailed
from infra.git import Mirror, directory_name, ensure_bare, is_dirty
from infra.ledger import AttemptOutcome
from infra.sections import RepositorySection
from infra.slots import sole
from infra.test_runners import detect_policy
from tasks import memory, paper, progress, services
from tasks.context import (
    CAPABLE_CONTEXT_CHARS,
    SMALL_CONTEXT_CHARS,
    nonce_for,
    rank_functions,
    render_prefix,
    select_code,
)
from tasks.evidence import run_baseline
from tasks.models import Brief, Job, Outcome, Policy, Repository, TestReport, Ticket
from tasks.policy import read_policy, read_rules
from tasks.publishing import IN_PROGRESS
from tasks.testing import examples_as_tests, sources

FREE_BYTES_NEEDED = 200 << 20


def find_ticket(key: str) -> Ticket:
    """The ticket on the board. ConfigError when there is none, or when it has no title or text to work from."""
    return services.board().find(key)


@contextmanager
def alone(key: str) -> Iterator[None]:
    """Hold the ticket on this machine: a second run of it ends at once, and a killed one frees it by dying."""
    ticket = find_ticket(key)
    with sole(services.settings().root / "run" / "tickets" / directory_name(ticket.key), f"ticket {ticket.key!r}"):
        yield


def own_state(key: str) -> str:
    """The state a ticket had before the factory took it, from the ledger; `todo` when that was never recorded."""
    return services.ledger().recorded_state(key) or "todo"


def find_repository(ticket: Ticket, named: str | None) -> tuple[str, RepositorySection]:
    """The repository of a run: named on the command line (a configured name or a path), or by the ticket."""
    known = services.settings().repositories
    wanted = named or ticket.repository
    if wanted is None and len(known) == 1:
        wanted = next(iter(known))
    if wanted is None:
        raise ConfigError(
            f"ticket {ticket.key!r} names no repository: pass --repo PATH or set `repository:` in the ticket"
        )
    if wanted in known:
        return wanted, known[wanted]
    path = Path(wanted).expanduser()
    if not path.exists():
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"repository {wanted!r} is neither a path nor configured (configured: {names}); correct --repo or factory.yaml"
        )
    return repository_name(path), RepositorySection(path=path.absolute())


def repository_name(path: Path) -> str:
    """A name for a repository given by path: its folder's name and, against mix-ups, a hash of the whole path."""
    absolute = path.absolute().resolve()
    digest = hashlib.sha256(str(absolute).encode()).hexdigest()[:8]
    return f"{directory_name(absolute.name.removesuffix('.git') or 'repository')}-{digest}"


def pin(name: str, configured: RepositorySection) -> Repository:
    """Refresh the factory's mirror, pin the base commit, and make sure there is a remote to push to."""
    home = services.settings().root
    mirror = Mirror.open(home / "repos", name, str(configured.path.expanduser()))
    branch, sha = mirror.base(configured.base_branch)
    remote = configured.remote
    if remote is None:
        bare = home / "forge" / name / "repo.git"
        ensure_bare(bare, mirror, branch)
        remote = str(bare)
    return Repository(name=name, mirror=str(mirror.path), remote=remote, base_branch=branch, base_sha=sha)


@task(name="intake", task_run_name="intake")
async def take_in(key: str, repository: str | None) -> Job:
    """Everything that can be wrong with ticket, repository, disk, sandbox or model shows here, before work starts."""
    settings = services.settings()
    _need_space(settings.root)
    ticket = await asyncio.to_thread(find_ticket, key)
    name, configured = find_repository(ticket, repository)
    services.sandbox()
    pinned = await asyncio.to_thread(pin, name, configured)
    dirty = await is_dirty(configured.path.expanduser(), services.sandbox())
    model = await services.model()
    ledger = services.ledger()
    if ticket.state == IN_PROGRESS:  # a run that was killed left it so; its own state is the one recorded before
        ticket = ticket.model_copy(update={"state": await asyncio.to_thread(own_state, ticket.key)})
    await asyncio.to_thread(ledger.record_ticket, ticket, name)
    attempt = await asyncio.to_thread(ledger.start_attempt, ticket.key, pinned.base_sha, ticket.revision)
    burnt = await asyncio.to_thread(ledger.burnt_attempts, ticket.key)
    warnings = (f"{configured.path} has uncommitted changes; work starts from its last commit",) if dirty else ()
    for warning in warnings:
        progress.report(ticket.key, phase="brief", role="intake", message=warning)
    await asyncio.to_thread(services.board().move, ticket.key, IN_PROGRESS)
    return Job(
        ticket=ticket,
        repository=pinned,
        attempt_id=attempt.id,
        # not the ledger's number: what was thought before a fault, or for a PR, is not thought again
        attempt=burnt + 1,
        model=model.name,
        tier=model.tier,
        context_tokens=model.context_tokens,
        max_rounds=settings.max_rounds,
        max_samples=settings.max_samples,
        seed=settings.seed,
        warnings=warnings,
    )


def _need_space(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES_NEEDED:
        raise DiskFull(
            f"only {free >> 20} MiB are free for {home}; the factory needs {FREE_BYTES_NEEDED >> 20} MiB to start a ticket"
        )


def _baseline_key(job: Job, policy: Policy) -> str:
    said = f"{job.repository.base_sha}{policy.model_dump_json()}"
    return f"baseline-{hashlib.sha256(said.encode()).hexdigest()}"


@task(name="run tests on base", persist_result=True, cache_key_fn=lambda _, a: _baseline_key(a["job"], a["policy"]))
async def baseline(job: Job, policy: Policy) -> TestReport:
    """The repository's own tests on the untouched base commit."""
    return await run_baseline(
        services.mirror(job.repository),
        services.sandbox(),
        services.worktrees(),
        job.ticket.key,
        policy,
        job.repository.base_sha,
    )


@task(name="brief", task_run_name="brief")
async def write_brief(job: Job) -> Brief:
    """Rules, policy, baseline, relevant code, memories and the ticket's own examples, with the shared prompt prefix."""
    progress.report(
        job.ticket.key, phase="brief", role="brief", message="running the repository's tests on the base commit"
    )
    mirror, sha = services.mirror(job.repository), job.repository.base_sha
    policy = read_policy(mirror, sha, detect_policy)
    report = await baseline(job, policy)
    if report.error:
        raise unusable(report)
    bare = Brief(ticket=job.ticket, repository=job.repository, policy=policy, baseline=report, rules=read_rules(mirror, sha),
                 memories=memory.recall(job.ticket), nonce=nonce_for(services.home_secret(), job.ticket))  # fmt: skip
    brief = _with_code(job, bare)
    brief = brief.model_copy(update={"ticket_tests": await examples_as_tests(brief)})
    await paper.leave(job, "brief", _as_markdown(brief))
    return brief


def unusable(report: TestReport) -> WorkFailed:
    """The error for a base commit whose tests say nothing."""
    return TestsFailed(
        f"the repository's tests give no evidence on the base commit: {report.error} (command: {report.command!r})"
    )


def _with_code(job: Job, brief: Brief) -> Brief:
    files = sources(brief)
    ranked = rank_functions(job.ticket, files, brief.baseline.output if brief.baseline.ids("failed") else "")
    limit = SMALL_CONTEXT_CHARS if job.tier == "small" else CAPABLE_CONTEXT_CHARS
    excerpts = select_code(ranked, files, limit)
    prefix = render_prefix(
        ticket=job.ticket,
        repository=job.repository.name,
        policy=brief.policy,
        rules=brief.rules,
        excerpts=excerpts,
        memories=brief.memories,
        baseline=brief.baseline,
        nonce=brief.nonce,
    )
    suspects = tuple(dict.fromkeys(r.function.qualified_name for r in ranked[:8]))
    return brief.model_copy(update={"excerpts": excerpts, "suspects": suspects, "prefix": prefix})


def _as_markdown(brief: Brief) -> str:
    report = brief.baseline
    places = [f"- `{e.path}` lines {e.start_line}-{e.end_line}" for e in brief.excerpts] or ["- none found"]
    own = brief.ticket_tests
    return "\n".join([
        f"Base `{brief.repository.base_sha[:12]}` of {brief.repository.name}. Tests: `{brief.policy.test}`: "
        f"{len(report.ids('passed'))} passed, {len(report.ids('failed'))} failed.",
        "", "Code shown:", *places, "", f"Examples of the ticket that fail now: {len(own.red) if own else 0}",
        f"Memories recalled: {len(brief.memories)}",
    ])  # fmt: skip


@task(name="close attempt", task_run_name="close attempt")
async def close(job: Job, outcome: Outcome) -> None:
    """Write how the attempt ended. A rejection burns the attempt."""
    ended: AttemptOutcome = "accepted" if outcome.decision == "ACCEPT" else "rejected"
    await asyncio.to_thread(services.ledger().end_attempt, job.attempt_id, ended)


async def give_back(job: Job, error: FactoryError) -> None:
    """End an attempt that an error stopped. The ticket returns to its own state; only `WorkFailed` burns the attempt."""
    outcome: AttemptOutcome = "infra_failed" if isinstance(error, InfraError | ConfigError) else "work_failed"

    def write() -> None:
        services.ledger().end_attempt(job.attempt_id, outcome, failure_class=type(error).__name__, error=str(error))
        services.board().move(job.ticket.key, job.ticket.state)
        if outcome == "work_failed":
            reason = re.sub(r"\s+", " ", str(error))[:500]
            services.board().comment(
                job.ticket.key, f"Attempt {job.attempt} failed: {reason}", marker=f"failed-{job.attempt}"
            )

    await asyncio.to_thread(write)
