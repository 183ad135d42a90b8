"""The guardian of pull requests that the factory did not open: each new head is measured and reviewed, and told once (W2).

It only reads and comments. A pull request may be a stranger's: its code runs in the sandbox, never with a network, and what
it says about itself stands fenced in every prompt. The rules it is measured by are those of its base branch.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

from prefect import task

from infra.claims import Claim
from infra.errors import WorkFailed
from infra.git import Mirror
from infra.pull_requests import PullRequest
from infra.redaction import redact
from infra.slots import sole
from infra.test_runners import detect_policy, is_test_path
from tasks import services
from tasks.context import nonce_for
from tasks.evidence import gather_evidence, refused_tests
from tasks.intake import baseline, named_repository, pin, with_code
from tasks.measuring import size_limits
from tasks.models import (
    Brief,
    Candidate,
    Evidence,
    Frozen,
    Job,
    Plan,
    Repository,
    Review,
    TestChange,
    Ticket,
)
from tasks.policy import read_policy, read_rules
from tasks.review import review
from tasks.scribe import code, quoted
from tasks.testing import checked

CHORE = "pr-guardian"
MOST_FINDINGS = 30
_NOT_FOR_PEOPLE = re.compile(r"^The change edits an existing test file|^No test fails before the change")
"""Rules for the factory's own coders; of a person they are worth a word, not an objection."""


class Proposal(Frozen):
    """A pull request to look at, with its repository pinned at the commit it began from."""

    pull_request: PullRequest
    repository: Repository
    head_sha: str


@task(name="find proposals", task_run_name="{repository}")
async def proposals(repository: str) -> tuple[PullRequest, ...]:
    """Open pull requests that the factory neither opened nor looks after, whose head was not looked at yet; forks too."""
    return await asyncio.to_thread(_proposals, repository)


def _proposals(repository: str) -> tuple[PullRequest, ...]:
    store, stewardships = services.housekeeping(), services.stewardships()
    stewardships.enrol()  # of pull requests that were opened a moment ago, the steward may not know yet
    return tuple(
        each
        for each in services.forge(repository).proposed()
        if (each.fork or stewardships.find(repository, each.branch) is None)
        and store.mark_of(CHORE, repository, _look(each)) is None
    )


def subject(pull_request: PullRequest) -> str:
    return f"#{pull_request.number}" if pull_request.number is not None else pull_request.branch


def _look(pull_request: PullRequest) -> str:
    """What is marked: each head is a look of its own, and counts against the day's cap."""
    return f"{subject(pull_request)} {pull_request.head_sha}"


def room_today() -> int:
    """Looks that today's cap leaves."""
    used = services.housekeeping().marked_today(CHORE)
    return max(services.settings().housekeeping.max_per_day(CHORE) - used, 0)


@task(name="look at proposal", task_run_name="{pull_request.branch}")
async def look_at(repository: str, pull_request: PullRequest) -> None:
    """Measure, review and comment, once for each head commit. What cannot be measured is said there, too."""
    ticket = _ticket(repository, pull_request)
    with sole(services.ticket_lock(ticket.board, ticket.key), f"the pull request {subject(pull_request)!r}"):
        try:
            found = await asyncio.to_thread(_fetched, repository, pull_request)
            told = as_comment(found, *await _weigh(found, ticket))
        except WorkFailed as error:
            told = f"The factory could not look at `{pull_request.head_sha[:12]}`: {quoted(redact(str(error)))}"
        await asyncio.to_thread(_tell, repository, pull_request, told)


def _tell(repository: str, pull_request: PullRequest, told: str) -> None:
    services.forge(repository).answer(pull_request, redact(told), f"guardian-{pull_request.head_sha[:12]}")
    services.housekeeping().mark(CHORE, repository, _look(pull_request), pull_request.head_sha)


def _ticket(repository: str, pull_request: PullRequest) -> Ticket:
    """What the roles, the ledger and the budgets know the pull request by; it is on no board."""
    key = f"{CHORE}-{repository}-{subject(pull_request).lstrip('#')}"
    return Ticket(board=services.housekeeping_board(), key=key, title=pull_request.title, body=pull_request.body or pull_request.title, state="proposed")  # fmt: skip


def _fetched(repository: str, pull_request: PullRequest) -> Proposal:
    pinned = pin(*named_repository(repository))
    mirror = services.mirror(pinned)
    head = _head(mirror, pinned, pull_request)
    if head != pull_request.head_sha:
        raise WorkFailed("its head moved, or its branch is gone; the new head is looked at next time")
    branch, base = mirror.base(pull_request.base)
    start = mirror.merge_base(head, base)
    if start is None:
        raise WorkFailed(f"it has no history in common with {branch!r}")
    at = pinned.model_copy(update={"base_branch": branch, "base_sha": start})
    return Proposal(pull_request=pull_request, repository=at, head_sha=head)


def _head(mirror: Mirror, pinned: Repository, pull_request: PullRequest) -> str | None:
    if pull_request.fork and pull_request.number is not None:
        return mirror.take_proposal(pinned.remote, pull_request.number)
    return mirror.take(pinned.remote, [pull_request.branch]).get(pull_request.branch)


async def _weigh(found: Proposal, ticket: Ticket) -> tuple[Evidence, Review]:
    """Evidence by the base branch's policy, without its network, and the reviewer's opinion."""
    mirror, repository = services.mirror(found.repository), found.repository
    policy = read_policy(mirror, repository.base_sha, detect_policy).model_copy(update={"network": False})
    job = await _job(ticket, repository)
    brief = Brief(
        ticket=ticket, repository=repository, policy=policy, baseline=await baseline(job, policy),
        rules=read_rules(mirror, repository.base_sha, ticket, 1), nonce=nonce_for(services.home_secret(), ticket),
    )  # fmt: skip
    brief = await asyncio.to_thread(with_code, job, brief)
    candidate = Candidate(number=1, head_sha=found.head_sha, changes=(), tests=await _own_tests(mirror, brief, found.head_sha))  # fmt: skip
    files, lines = size_limits(job)
    evidence = await gather_evidence(
        mirror, services.sandbox(), services.worktrees(), brief, found.head_sha, candidate.tests,
        max_files=files, max_lines=lines,
    )  # fmt: skip
    plan = Plan(summary=ticket.title, effort=2, units=())
    try:
        return evidence, await review(job, brief, plan, candidate, evidence, 0)
    finally:
        await asyncio.to_thread(services.ledger(ticket.board).end_attempt, job.attempt_id, "cancelled")


async def _own_tests(mirror: Mirror, brief: Brief, head_sha: str) -> tuple[TestChange, ...]:
    """The test files it adds, with what they do without its change."""
    base = brief.repository.base_sha
    added = [f.path for f in mirror.changed(base, head_sha) if f.status == "added" and is_test_path(f.path)]
    texts = {path: raw.decode(errors="replace") for path, raw in mirror.read_all(head_sha, added).items()}
    usable = {path: text for path, text in texts.items() if not refused_tests(mirror, base, {path: text})}
    return (await checked(brief, 1, usable),) if usable else ()


async def _job(ticket: Ticket, repository: Repository) -> Job:
    """The attempt that the reviewer's calls are counted under. Nothing is held: nothing is written but a comment."""
    settings, ledger = services.settings(), services.ledger(ticket.board)
    model = await services.model()
    await asyncio.to_thread(ledger.record_ticket, ticket, repository.name)
    attempt = await asyncio.to_thread(ledger.start_attempt, ticket.key, repository.base_sha, ticket.revision)
    return Job(
        ticket=ticket, repository=repository, attempt_id=attempt.id, attempt=1, model=model.name, tier=model.tier,
        context_tokens=model.context_tokens, max_rounds=1, max_samples=1, seed=settings.seed,
        provider=services.provider(), claim=_no_claim(ticket, repository),
    )  # fmt: skip


def _no_claim(ticket: Ticket, repository: Repository) -> Claim:
    """A claim on nothing: every write that has to show one is refused."""
    now = datetime.now(UTC)
    return Claim(
        board=ticket.board, ticket=ticket.key, state="running", token=0, holder="", machine="", node="",
        repository=repository.name, ticket_state=ticket.state, content="", claimed_at=now, lease_until=now, lease_seconds=0,
    )  # fmt: skip


def as_comment(found: Proposal, evidence: Evidence, opinion: Review) -> str:
    """What the pull request is told: what was measured, what stands against it, what the reviewer points at."""
    against = [said for said in evidence.failures if not _NOT_FOR_PEOPLE.match(said)]
    lookworthy = [said for said in evidence.failures if _NOT_FOR_PEOPLE.match(said)]
    findings = [*(f for f in evidence.findings if f.new), *opinion.findings][:MOST_FINDINGS]
    rows = [
        f"| {f.severity} | {quoted(f.source)} | {code(f'{f.path}:{f.line}')} | {quoted(f.message)} |" for f in findings
    ]
    return "\n".join([
        f"Looked at `{found.head_sha[:12]}` against `{found.repository.base_sha[:12]}` of {quoted(found.repository.base_branch)}. "
        "This is a look, not an approval.", "",
        f"{len(evidence.fixed)} test(s) fail before and pass after, {len(evidence.broken)} broken, "
        f"+{evidence.lines_added} -{evidence.lines_removed} in {len(evidence.files)} file(s).", "",
        *([f"- **Against it:** {quoted(said)}" for said in against] or ["- Nothing measured speaks against it."]),
        *(f"- {quoted(said)}" for said in lookworthy),
        *(["", "| severity | found by | place | finding |", "|---|---|---|---|", *rows] if rows else []),
        *(["", f"Review: {quoted(opinion.summary)}"] if opinion.summary else []),
    ])  # fmt: skip
