"""Intake: finds ticket and repository, pins the base commit, opens the attempt, and writes the brief."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import task

from infra.boards.folder import FolderBoard
from infra.claims import Claim
from infra.errors import ConfigError, DiskFull, TestsFailed, WorkFailed
from infra.git import Mirror, directory_name, ensure_bare, is_dirty
from infra.remotes import remote_of
from infra.sections import RepositorySection
from infra.slots import sole
from infra.test_runners import detect_policy
from tasks import checkouts, memory, paper, progress, services
from tasks.code_search import sources
from tasks.context import (
    CAPABLE_CONTEXT_CHARS,
    SMALL_CONTEXT_CHARS,
    SPECIFICATION_CHARS,
    TICKET_CHARS,
    nonce_for,
    rank_functions,
    render_prefix,
    select_code,
)
from tasks.evidence import run_baseline
from tasks.failures import next_tier
from tasks.grants import leave_grants
from tasks.holding import fence
from tasks.models import Brief, Greenfield, Job, Policy, Repository, TestReport, Ticket
from tasks.policy import read_policy, read_rules, unused_keys
from tasks.questions import answers
from tasks.routing import route
from tasks.testing import examples_as_tests

CLAIM_MARKER = "claim"


def find_ticket(key: str, board: str = "folder") -> Ticket:
    """The ticket on the board. ConfigError when there is none, or when it has no title or text to work from."""
    opened = services.board(board)
    if isinstance(opened, FolderBoard):
        return opened.find(key)
    found = opened.tickets_by_keys([key])
    if not found:
        raise ConfigError(f"no ticket {key!r} on the board {board!r}; correct the key or give --board")
    return found[0]


@contextmanager
def alone(ticket: Ticket) -> Iterator[None]:
    """Hold the ticket on this machine: a second run of it ends at once, and a killed one frees it by dying."""
    with sole(services.ticket_lock(ticket.board, ticket.key), f"ticket {ticket.key!r}"):
        try:
            yield
        finally:
            checkouts.tidy(ticket)


def own_state(ticket: Ticket) -> str:
    """The state a ticket had before the factory took it, from the ledger, else the first of the board's queue."""
    recorded = services.ledger(ticket.board).recorded_state(ticket.key)
    return recorded or services.board_section(ticket.board).states.queue[0]


def find_repository(ticket: Ticket, named: str | None) -> tuple[str, RepositorySection]:
    """The repository of a run: named on the command line (a configured name or a path), or where the ticket routes to."""
    known = services.settings().repositories
    wanted = named
    if wanted is None:
        wanted = route(ticket, known, services.board_section(ticket.board).repository).repository or ticket.repository
    if wanted is None:
        raise ConfigError(
            f"ticket {ticket.key!r} names no repository: pass --repo PATH or set `repository:` in the ticket"
        )
    return named_repository(wanted)


def named_repository(wanted: str) -> tuple[str, RepositorySection]:
    """A configured repository by its name, else the one at a path. Raises ConfigError with the configured names."""
    known = services.settings().repositories
    if wanted in known:
        return wanted, known[wanted]
    path = Path(wanted).expanduser()
    if not path.exists():
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"repository {wanted!r} is neither a path nor configured (configured: {names}); correct --repo or factory.yaml"
        )
    place = path.absolute()
    if place.name == "repo.git" and place.parent.parent == services.settings().root / "forge":
        return place.parent.name, RepositorySection(path=place, remote=str(place))  # it is its own remote
    return repository_name(path), RepositorySection(path=place)


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
    remote = remote_of(configured)
    if remote is None:
        bare = home / "forge" / name / "repo.git"
        ensure_bare(bare, mirror, branch)
        remote = str(bare)
    return Repository(name=name, mirror=str(mirror.path), remote=remote, base_branch=branch, base_sha=sha)


@task(name="intake", task_run_name="intake")
async def take_in(
    ticket: Ticket, repository: str | None, claim: Claim, dispatched: bool, greenfield: Greenfield | None = None
) -> Job:
    """Everything that can be wrong with ticket, repository, disk, sandbox or model shows here, before work starts."""
    _need_space()
    name, configured = find_repository(ticket, repository)
    services.sandbox()
    pinned = await asyncio.to_thread(pin, name, configured)
    dirty = await is_dirty(configured.path.expanduser(), services.sandbox())
    ledger, states = services.ledger(ticket.board), services.board_section(ticket.board).states
    if (
        ticket.state.casefold() == states.working.casefold()
    ):  # a killed run left it so; its own state was recorded before
        ticket = ticket.model_copy(update={"state": await asyncio.to_thread(own_state, ticket)})
    await asyncio.to_thread(ledger.record_ticket, ticket, name)
    warnings = (f"{configured.path} has uncommitted changes; work starts from its last commit",) if dirty else ()
    for warning in warnings:
        progress.report(ticket.key, phase="brief", role="intake", message=warning)
    job = await open_attempt(ticket, pinned, claim, dispatched, warnings)
    job = job.model_copy(update={"greenfield": greenfield})
    await asyncio.to_thread(_move_to_work, job, states.working)
    return job


async def open_attempt(
    ticket: Ticket, pinned: Repository, claim: Claim, dispatched: bool, warnings: tuple[str, ...] = ()
) -> Job:
    """The job of a ticket that is in the ledger: its attempt (the open one of a run that was killed), its model, its bounds."""
    settings, ledger = services.settings(), services.ledger(ticket.board)
    strong = next_tier(claim.failures, services.has_strong()) == "strong"
    model = await services.model(strong)
    attempt = await asyncio.to_thread(ledger.start_attempt, ticket.key, pinned.base_sha, ticket.revision)
    burnt = await asyncio.to_thread(ledger.burnt_attempts, ticket.key)
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
        provider=services.provider(strong),
        claim=claim,
        dispatched=dispatched,
        final=not dispatched or claim.failures + 1 >= settings.dispatch.max_attempts,
    )


def _move_to_work(job: Job, working: str) -> None:
    with fence(job):
        services.board(job.ticket.board).move(job.ticket.key, working)


def claim_note(claim: Claim, attempt: int) -> str:
    """What the ticket says about its claim. The lease is renewed while the run lives."""
    return (
        f"Claimed by node {claim.node} for attempt {attempt}; the claim is void after "
        f"{claim.lease_until:%Y-%m-%d %H:%M:%S} UTC unless it is renewed."
    )


def _need_space() -> None:
    free, needed = checkouts.free_bytes(), checkouts.FREE_BYTES_NEEDED
    if free < needed:
        raise DiskFull(
            f"only {free >> 20} MiB are free for {services.settings().root}; the factory needs {needed >> 20} MiB to start a ticket"
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
    rules, unused = read_rules(mirror, sha, job.ticket, job.attempt), unused_keys(mirror, sha)
    if unused:
        message = f"WORKFLOW.md sets what has no effect here: {', '.join(unused)}"
        progress.report(job.ticket.key, phase="brief", role="brief", message=message)
    report = await baseline(job, policy)
    if report.error:
        raise unusable(report)
    bare = Brief(ticket=job.ticket, repository=job.repository, policy=policy, baseline=report, rules=rules,
                 memories=await memory.recall_for(job), answers=answers(job.ticket),
                 nonce=nonce_for(services.home_secret(), job.ticket))  # fmt: skip
    brief = await asyncio.to_thread(with_code, job, bare)  # indexing a large repository takes its time
    brief = brief.model_copy(update={"ticket_tests": await examples_as_tests(brief)})
    await paper.leave(job, "brief", _as_markdown(brief, unused))
    await leave_grants(job, policy)
    return brief


def unusable(report: TestReport) -> WorkFailed:
    """The error for a base commit whose tests say nothing."""
    return TestsFailed(
        f"the repository's tests give no evidence on the base commit: {report.error} (command: {report.command!r})"
    )


def with_code(job: Job, brief: Brief) -> Brief:
    """The brief with the code that matters and the prompt prefix."""
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
        ticket_chars=SPECIFICATION_CHARS if job.greenfield else TICKET_CHARS,
        answers=brief.answers,
    )
    suspects = tuple(dict.fromkeys(r.function.qualified_name for r in ranked[:8]))
    return brief.model_copy(update={"excerpts": excerpts, "suspects": suspects, "prefix": prefix})


def _as_markdown(brief: Brief, unused: tuple[str, ...]) -> str:
    report = brief.baseline
    places = [f"- `{e.path}` lines {e.start_line}-{e.end_line}" for e in brief.excerpts] or ["- none found"]
    own = brief.ticket_tests
    return "\n".join([
        f"Base `{brief.repository.base_sha[:12]}` of {brief.repository.name}. Tests: `{brief.policy.test}`: "
        f"{len(report.ids('passed'))} passed, {len(report.ids('failed'))} failed.",
        "", "Code shown:", *places, "", f"Examples of the ticket that fail now: {len(own.red) if own else 0}",
        f"Memories recalled: {len(brief.memories)}",
        *(["", "WORKFLOW.md sets what has no effect here:", *(f"- {key}" for key in unused)] if unused else []),
    ])  # fmt: skip
