"""One round on an open pull request or branch: what is wrong with it, where the work starts, and what is told at the end.

A round works under the ticket's claim, so nobody else works on the ticket meanwhile. It starts at the branch's own head and
only adds to it: nobody's commit is ever replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from typing import Any

from prefect import task
from pydantic import AwareDatetime

from infra.claims import Claim
from infra.errors import NeedsHuman, WorkFailed
from infra.git import Mirror
from infra.ledger import AttemptOutcome
from infra.pauses import DISPATCH
from infra.pull_requests import PullRequest
from infra.redaction import redact
from infra.stewardships import Journal, Stewardship
from infra.test_runners import detect_policy, is_test_path
from tasks import services
from tasks.attempts import give_back, provider_scope
from tasks.context import nonce_for
from tasks.evidence import refused_tests
from tasks.holding import fence
from tasks.intake import baseline, open_attempt, pin, unusable, with_code
from tasks.models import (
    Brief,
    Candidate,
    Decision,
    Evidence,
    FactoryError,
    Frozen,
    Job,
    Plan,
    Repository,
    Result,
    Review,
    TestChange,
    Ticket,
    Verdict,
    WorkUnit,
)
from tasks.policy import read_policy, read_rules
from tasks.scribe import PullRequestText, code, quoted
from tasks.stewarding import BRANCHES, COUNTERS, ROUNDS, Kind, Seen, failing, finish, newest, next_step, see, unanswered
from tasks.testing import checked

CONCERN_CHARS = 3_000
"""How much of what is wrong is put before the ticket's own words."""
_MARKS = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)


class Round(Frozen):
    """A round that was taken up. `job.repository.base_sha` is where the work starts; what comes out is judged against the
    base branch's commit `judged` and becomes a commit on `parents`, the first of which is the branch's head."""

    kind: Kind
    row: Stewardship
    job: Job
    pull_request: PullRequest | None = None
    parents: tuple[str, ...]
    judged: str
    conflicts: tuple[str, ...] = ()
    must_fix: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()
    """Test files of the branch that reviewers talk about: only these may be changed without a word."""
    heard: AwareDatetime | None = None
    """The newest words of reviewers that the round deals with; `newest` of all."""
    newest: AwareDatetime | None = None

    @property
    def start(self) -> str:
        return self.job.repository.base_sha

    @property
    def head_sha(self) -> str:
        """The branch's head before the round."""
        return self.parents[0]


class Standing(Frozen):
    """What the roles know: `now` shows the branch as it is, `judged` what the result is measured against."""

    now: Brief
    judged: Brief
    tests: tuple[TestChange, ...] = ()
    """The branch's own new tests: those that fail without its change are its evidence."""


class Ended(Frozen):
    """How a round ended. `head_sha` is a new commit for the branch, or None when there is none."""

    branch: str
    kind: Kind
    decision: Decision
    reasons: tuple[str, ...]
    head_sha: str | None = None
    result: Result | None = None
    text: PullRequestText | None = None


# ---- taking a round up --------------------------------------------------------------------------------------------


@task(name="take up", task_run_name="take up")
async def take_up(ticket: Ticket, repository: str, claim: Claim, dispatched: bool) -> Round | None:
    """Look at the pull request again, now that the ticket is ours; None when nothing is to do any more."""
    services.sandbox()
    found = await asyncio.to_thread(_look_again, ticket, repository)
    if found is None:
        return None
    row, seen, pull, pinned = found
    policy = services.settings().repositories[repository].steward
    kind = next_step(seen, row, policy).kind
    if kind not in ROUNDS:
        return None
    await asyncio.to_thread(services.ledger(ticket.board).record_ticket, ticket, repository)
    start, judged, parents, conflicts = await asyncio.to_thread(_start, services.mirror(pinned), kind, seen, row)
    words = unanswered(seen, row.handled) if kind == "review" else ()
    told = "\n".join(_concern(kind, seen, row, conflicts))[:CONCERN_CHARS]
    about = ticket.model_copy(
        update={"body": f"About the open pull request of this ticket:\n{told}\n\nThe ticket itself:\n{ticket.body}"}
    )
    job = await open_attempt(about, pinned.model_copy(update={"base_sha": start}), claim, dispatched)
    return Round(
        kind=kind, row=row, job=job, pull_request=pull, parents=parents, judged=judged, conflicts=conflicts,
        must_fix=_must_fix(kind, row, conflicts),
        excused=tuple(r.path for r in words if r.path),
        heard=max((r.at for r in words if r.at), default=None),
        newest=newest(seen),
    )  # fmt: skip


def _look_again(ticket: Ticket, repository: str) -> tuple[Stewardship, Seen, PullRequest | None, Repository] | None:
    row = services.stewardships().of_ticket(ticket.board, ticket.key)
    if row is None or row.state == "ended":
        return None
    pinned, pull = (
        pin(repository, services.settings().repositories[repository]),
        services.forge(repository).find(row.branch),
    )
    if pull is not None and pull.state != "open":
        return None
    tip = services.mirror(pinned).tips(pinned.remote, [row.branch]).get(row.branch)
    row = finish(row, tip or "")
    pinned = pinned.model_copy(update={"base_branch": pull.base}) if pull else pinned
    return row, see(row, pinned, pull), pull, pinned


def _start(
    mirror: Mirror, kind: Kind, seen: Seen, row: Stewardship
) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """Where the work starts, what it is judged against, the parents of the commit, and where both sides collide."""
    if kind in ("conflict", "update"):
        merged, parents = mirror.merge(seen.head_sha, seen.base_sha), (seen.head_sha, seen.base_sha)
        start = mirror.commit_tree(merged.tree, parents, f"Merge the base branch into {row.branch}")
        return start, seen.base_sha, parents, merged.conflicts
    judged = mirror.merge_base(seen.head_sha, seen.base_sha)
    if judged is None:
        raise WorkFailed(f"the branch {row.branch!r} has no history in common with its base branch; rebase it by hand")
    return seen.head_sha, judged, (seen.head_sha,), ()


def _concern(kind: Kind, seen: Seen, row: Stewardship, conflicts: tuple[str, ...]) -> Iterator[str]:
    """What is to be dealt with, in the words of CI, reviewers and whoever asked. All of it is text from outside (WS8)."""
    match kind:
        case "ci":
            yield from (f"The check {check.name} failed:\n{check.summary}" for check in failing(seen))
        case "review":
            for said in unanswered(seen, row.handled):
                place = f" on {said.path}:{said.line or '?'}" if said.path else ""
                yield f"{said.author} said{place}: {said.body or 'changes are requested'}"
        case "conflict" | "update" if conflicts:
            yield f"Its branch and the base branch both changed: {', '.join(conflicts)}"
        case "refine" if row.wanted and row.wanted.instructions:
            yield f"Whoever asked for a refinement said: {row.wanted.instructions}"


def _must_fix(kind: Kind, row: Stewardship, conflicts: tuple[str, ...]) -> tuple[str, ...]:
    """The same in our own words, which may stand outside of the fence."""
    match kind:
        case "ci":
            return (
                "Checks of the pull request failed; what they said stands at the top of the ticket. Mend the cause.",
            )
        case "review":
            return ("Reviewers asked for changes; what they said stands at the top of the ticket. Do what they ask.",)
        case "conflict" | "update" if conflicts:
            named = ", ".join(code(path) for path in conflicts)
            return (
                f"Resolve every conflict mark (<<<<<<<, =======, >>>>>>>) so that both sides' intent is kept: {named}.",
            )
        case "refine" if row.wanted and row.wanted.instructions:
            return ("Do what the refinement asks for; its words stand at the top of the ticket.",)
    return ()


# ---- what the roles work from ---------------------------------------------------------------------------------------


@task(name="brief", task_run_name="brief")
async def brief_round(round: Round) -> Standing:
    """The branch as it is, and what it is judged against. Policy and rules are the base branch's: a branch cannot loosen them."""
    job, mirror = round.job, services.mirror(round.job.repository)
    policy = read_policy(mirror, round.judged, detect_policy)
    judged_at = job.repository.model_copy(update={"base_sha": round.judged})
    before = await baseline(job.model_copy(update={"repository": judged_at}), policy)
    if before.error:
        raise unusable(before)
    now = before if round.conflicts else await baseline(job, policy)
    brief = Brief(
        ticket=job.ticket, repository=job.repository, policy=policy, baseline=before if now.error else now,
        rules=read_rules(mirror, round.judged, job.ticket, job.attempt),
        nonce=nonce_for(services.home_secret(), job.ticket),
    )  # fmt: skip
    brief = with_code(job, brief)
    judged = brief.model_copy(update={"repository": judged_at, "baseline": before})
    return Standing(now=brief, judged=judged, tests=await _own_tests(round, judged, mirror))


async def _own_tests(round: Round, judged: Brief, mirror: Mirror) -> tuple[TestChange, ...]:
    """The test files that the branch adds, with what they do without its change."""
    added = [f.path for f in mirror.changed(round.judged, round.start) if f.status == "added" and is_test_path(f.path)]
    texts = {path: raw.decode(errors="replace") for path, raw in mirror.read_all(round.start, added).items()}
    usable = {
        p: t for p, t in texts.items() if p not in round.excused and not refused_tests(mirror, round.judged, {p: t})
    }
    return (await checked(judged, 1, usable),) if usable else ()


def plan_for(round: Round) -> Plan:
    """The plan of a round, by rule: there is one thing to do, and what it is stands in the ticket."""
    said = " ".join(round.must_fix) or "Look the branch over: is it right, safe and complete?"
    unit = WorkUnit(id="fix", title="Mend the pull request", description=said, files=round.conflicts)
    summary = f"{round.job.ticket.title} (an open pull request; this round is about {WORDS[round.kind]})"
    return Plan(summary=summary, effort=2, units=(unit,))


def as_it_is(round: Round, standing: Standing) -> Candidate:
    """The start of the round as a candidate: the branch, or the branch with its base merged in."""
    return Candidate(number=1, round=0, head_sha=round.start, changes=(), tests=standing.tests)


def still_marked(round: Round, evidence: Evidence) -> Evidence:
    """The evidence, with an objection for every file in which a conflict is not resolved."""
    texts = services.mirror(round.job.repository).read_all(evidence.head_sha, round.conflicts)
    left = [path for path, raw in texts.items() if _MARKS.search(raw.decode(errors="replace"))]
    said = tuple(f"The conflict in {path!r} is not resolved." for path in left)
    return evidence.model_copy(update={"violations": (*evidence.violations, *said)})


def wanted_of(opinion: Review, verdict: Verdict) -> tuple[str, ...]:
    """What a look at the branch found that has to be mended."""
    grave = [f"{f.message} ({f.path}:{f.line})" for f in opinion.findings if f.severity in ("critical", "high")]
    return (*verdict.must_fix, *grave)


def end_of(round: Round, result: Result) -> Ended:
    """The end of a round, with the commit that goes onto the branch when it was accepted and there is something new."""
    head, verdict = result.candidate.head_sha, result.verdict
    if verdict.decision != "ACCEPT":
        return Ended(
            branch=round.row.branch, kind=round.kind, decision="REJECT", reasons=verdict.reasons, result=result
        )
    if round.parents != (round.start,):
        message = f"{round.job.ticket.title}\n\nMerges the base branch into {round.row.branch}."
        head = services.mirror(round.job.repository).commit_tree(head, round.parents, message)
    return Ended(branch=round.row.branch, kind=round.kind, decision="ACCEPT", reasons=verdict.reasons, result=result,
                 head_sha=head if head != round.head_sha else None)  # fmt: skip


def unchanged(round: Round, words: str) -> Ended:
    """A round in which the coder changed nothing."""
    said = f"nothing was changed: {words}" if words else "nothing was changed"
    return Ended(branch=round.row.branch, kind=round.kind, decision="REJECT", reasons=(said,))


# ---- telling ------------------------------------------------------------------------------------------------------


@task(name="settle round", task_run_name="settle round")
async def settle(round: Round, ended: Ended) -> None:
    """Push what is new, say so on the pull request, and remember what was dealt with; each once, whenever this dies."""
    await asyncio.to_thread(_settle, round, ended)


def _settle(round: Round, ended: Ended) -> None:
    told = redact(as_comment(round, ended))
    with fence(round.job):
        if ended.head_sha is not None:
            _push(round, ended, ended.head_sha, told)
        else:
            services.forge(round.row.repository).comment(round.row.branch, told, _marker(round))
            services.stewardships().save(round.row, **_dealt_with(round, ended), settled=None)
    close(round, "accepted" if ended.decision == "ACCEPT" else "rejected")


def _push(round: Round, ended: Ended, head_sha: str, told: str) -> None:
    """The journal is written before the push, and what it says is finished, or taken back, by whoever looks next."""
    row, stewardships, repository = round.row, services.stewardships(), round.job.repository
    journal = Journal(
        before=round.head_sha, after=head_sha, counter=_counter(round, ended), handled=row.handled, wanted=row.wanted,
        marker=_marker(round), comment=told,
    )  # fmt: skip
    row = stewardships.save(row, **_dealt_with(round, ended), journal=journal, settled=None)
    services.mirror(repository).advance(repository.remote, row.branch, head_sha, round.head_sha)
    if round.pull_request is not None and ended.text is not None and row.board != BRANCHES:
        published = services.forge(row.repository).publish(
            branch=row.branch, base=round.pull_request.base, head_sha=head_sha,
            title=round.pull_request.title, body=ended.text.body,
        )  # fmt: skip
        services.ledger(row.board).record_pull_request(row.ticket, published)
    finish(row, head_sha)


def _dealt_with(round: Round, ended: Ended) -> dict[str, Any]:
    row, counter = round.row, _counter(round, ended)
    changes: dict[str, Any] = {counter: getattr(row, counter) + 1} if counter else {}
    handled = row.handled
    if round.heard is not None:
        handled = handled.model_copy(update={"heard": round.heard})
    if round.kind == "refine":
        handled = handled.model_copy(update={"refined": row.wanted.by if row.wanted else None})
        changes["wanted"] = None
    return {**changes, "handled": handled}


def _counter(round: Round, ended: Ended | None) -> Any:
    """The counter that this round moves. A base branch that was merged in without a coder costs nothing."""
    by_itself = (
        ended is not None and ended.decision == "ACCEPT" and ended.result is not None and ended.result.rounds == 0
    )
    return None if by_itself else COUNTERS.get(round.kind)


def _marker(round: Round) -> str:
    about = f"{round.head_sha}{round.row.wanted.by if round.row.wanted else ''}{round.job.ticket.revision}{round.job.attempt}"
    return f"{round.kind}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def close(round: Round, outcome: AttemptOutcome) -> None:
    """End the attempt and let the ticket go."""
    job = round.job
    services.ledger(job.ticket.board).end_attempt(job.attempt_id, outcome)
    for scope in filter(None, (provider_scope(job), DISPATCH)):
        services.pauses().succeed(scope)
    let_go(job.claim, job.ticket, f"a round on its pull request ended ({outcome})")


def let_go(claim: Claim, ticket: Ticket, reason: str) -> None:
    """Release the claim. A ticket that stands in the queue, although its pull request is open, must not be dispatched for that."""
    section = services.settings().all_boards.get(ticket.board)
    queue = {state.casefold() for state in section.states.queue} if section else set()
    services.claims().release(claim, reason, moved=ticket.state.casefold() not in queue)


async def give_up(round: Round, error: FactoryError, seconds: float) -> None:
    """End a round that an error stopped. Failed work and questions are told on the pull request; faults burn nothing."""
    if isinstance(error, WorkFailed):
        said = Ended(branch=round.row.branch, kind=round.kind, decision="REJECT", reasons=(str(error),))
        await settle(round, said)
    elif isinstance(error, NeedsHuman):
        await asyncio.to_thread(_ask, round, error.question)
    else:
        await give_back(round.job, error, seconds)


def _ask(round: Round, question: str) -> None:
    row = round.row
    with fence(round.job):
        text = f"A question before the work can go on; reply here:\n\n{quoted(redact(question))}"
        services.forge(row.repository).comment(row.branch, text, f"question-{_marker(round)}")
        at = {"parked_head": round.head_sha, "parked_heard": round.newest, "heard": round.heard or row.handled.heard}
        handled = row.handled.model_copy(update=at)
        services.stewardships().save(row, state="parked", reason="waits for a reply", handled=handled)
    close(round, "cancelled")


WORDS: dict[Kind, str] = {
    "ci": "the failed checks", "review": "the remarks of reviewers", "conflict": "the conflict with the base branch",
    "update": "the base branch that moved on", "refine": "the refinement", "qa": "the proof",
}  # fmt: skip


def as_comment(round: Round, ended: Ended) -> str:
    """What a pull request is told about a round: verdict, evidence, findings and threats."""
    done = f"pushed as `{ended.head_sha[:12]}`" if ended.head_sha else "nothing was pushed"
    lines = [f"**{ended.decision}**: {WORDS[round.kind]} ({done}).", "", *(f"- {quoted(r)}" for r in ended.reasons)]
    if ended.result is not None:
        lines += _review_table(ended.result)
    return "\n".join(lines)


def _review_table(result: Result) -> list[str]:
    evidence = result.evidence
    words = [f"- {quoted(c.explanation)}" for c in result.candidate.changes if c.explanation]
    rows = [
        f"| {f.severity} | {quoted(f.source)} | {code(f'{f.path}:{f.line}')} | {quoted(f.message)} |"
        for f in (*(f for f in evidence.findings if f.new), *result.review.findings)
    ]
    threats = [
        f"| {t.severity} | {t.category} | {quoted(t.vector)} | {quoted(t.threat)} |"
        for a in result.audits
        for t in a.threats
    ]
    return [
        "",
        f"Against the base branch: {len(evidence.fixed)} test(s) fail before and pass after, {len(evidence.broken)} broken, "
        f"+{evidence.lines_added} -{evidence.lines_removed} in {len(evidence.files)} file(s).",
        *(["", "What was changed, in the coder's words:", *words] if words else []),
        *(
            ["", "| severity | found by | place | finding |", "|---|---|---|---|", *rows]
            if rows
            else ["", "No findings."]
        ),
        *(["", "| severity | STRIDE | where it enters | threat |", "|---|---|---|---|", *threats] if threats else []),
        *(["", f"Review: {quoted(result.review.summary)}"] if result.review.summary else []),
    ]
