"""`work_ticket`: one ticket becomes a reviewed, tested pull request. Read this first; each line is a step in `tasks/`."""

from __future__ import annotations

import asyncio
import logging
import time

from prefect import flow

from tasks.attempts import close, give_back
from tasks.coding import in_waves, write_code
from tasks.collecting import collect
from tasks.delivery import archive, cost_so_far
from tasks.holding import holding, take_hold, waiting_for_their_turn
from tasks.intake import alone, find_repository, find_ticket, take_in, write_brief
from tasks.judging import judge
from tasks.measuring import measure, rank
from tasks.memory import remember
from tasks.models import (
    Assignment,
    Audit,
    Brief,
    Candidate,
    Change,
    Evidence,
    FactoryError,
    Feedback,
    Job,
    Outcome,
    Plan,
    PullRequest,
    Result,
    TestChange,
)
from tasks.planning import crew, make_plan
from tasks.publishing import publish, reject
from tasks.review import review
from tasks.scribe import write_up
from tasks.security import audit
from tasks.testing import credible_tests, write_tests

logger = logging.getLogger(__name__)


@flow(name="work-ticket", flow_run_name="{ticket}", persist_result=True)
async def work_ticket(
    ticket: str, repository: str | None = None, board: str = "folder", token: int | None = None
) -> Outcome:
    """Work `ticket` of `board` on `repository` (a configured name, a path, or what the ticket routes to).

    `token` is the claim a dispatcher made for this run; without one the run claims the ticket itself. Returns how it ended,
    ACCEPT or REJECT. Raises ConfigError, InfraError (nothing burnt, run again), NeedsHuman or WorkFailed.
    """
    started = time.monotonic()
    found = find_ticket(ticket, board)
    with alone(found):
        claim = take_hold(found, find_repository(found, repository)[0], token)
        async with holding(claim):
            job = await take_in(found, repository, claim, token is not None)
            try:
                outcome = await deliver(job, started)
            except FactoryError as error:
                await give_back(job, error, time.monotonic() - started)
                raise
            await close(job, outcome)
            await remember(job, outcome)
            return outcome


@flow(name="work-tickets", flow_run_name="batch of {tickets}", persist_result=True)
async def work_tickets(tickets: list[Assignment]) -> list[Outcome]:
    """A few small tickets of one repository in one session, one after the other, each with a pull request of its own (T13).

    One that fails is settled like any other and does not stop the rest.
    """
    outcomes: list[Outcome] = []
    with waiting_for_their_turn(tickets):
        for each in tickets:
            try:
                outcomes.append(await work_ticket(each.ticket, each.repository, each.board, each.token))
            except FactoryError as error:
                logger.warning("ticket=%s outcome=failed reason=%r", each.ticket, str(error))
    return outcomes


async def deliver(job: Job, started: float) -> Outcome:
    """Brief, plan, rounds of work until the judge decides, then the pull request or the reason why there is none."""
    brief = await write_brief(job)
    plan = await make_plan(job, brief)
    result = await decide_in_rounds(job, brief, plan)
    usage = await cost_so_far(job)
    await archive(job, plan, result, usage)
    pull_request: PullRequest | None = None
    if result.verdict.decision == "ACCEPT":
        pull_request = await publish(job, result.candidate, await write_up(job, plan, result, usage))
    else:
        await reject(job, result.verdict)
    return Outcome(
        ticket=job.ticket.key,
        decision=result.verdict.decision,
        reasons=result.verdict.reasons,
        pull_request=pull_request,
        evidence=result.evidence,
        rounds=result.rounds,
        usage=usage,
        seconds=time.monotonic() - started,
        warnings=job.warnings,
    )


async def decide_in_rounds(job: Job, brief: Brief, plan: Plan) -> Result:
    """Work, measure, review and judge; REVISE starts the next round with what must be fixed. The best candidate is kept."""
    tests: tuple[TestChange, ...] = (brief.ticket_tests,) if brief.ticket_tests else ()
    feedback = Feedback()
    measured: list[tuple[Candidate, Evidence]] = []
    audits: tuple[Audit, ...] = ()
    for number in range(1, job.max_rounds + 1):
        changes, tests, audits = await work(job, brief, plan, number, tests, feedback, audits)
        for candidate in [await collect(job, n, number, made, tests) for n, made in enumerate(changes, 1)]:
            measured.append((candidate, await measure(job, brief, candidate, number)))
        candidate, evidence = max(measured, key=lambda pair: rank(*pair))
        tests = credible_tests(tests, evidence, last_round=number == job.max_rounds)
        if tests != candidate.tests:
            candidate = await collect(job, candidate.number, number, candidate.changes, tests)
            evidence = await measure(job, brief, candidate, number)
        opinion = await review(job, brief, plan, candidate, evidence, number)
        verdict = await judge(job, brief, plan, candidate, evidence, opinion, number)
        if verdict.decision != "REVISE":
            break
        feedback = Feedback(must_fix=verdict.must_fix, changes=candidate.changes)
    return Result(candidate=candidate, evidence=evidence, review=opinion, audits=audits, verdict=verdict, rounds=number)


async def work(
    job: Job,
    brief: Brief,
    plan: Plan,
    number: int,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
    audits: tuple[Audit, ...],
) -> tuple[list[tuple[Change, ...]], tuple[TestChange, ...], tuple[Audit, ...]]:
    """One round: coders, testers and auditors at the same time. Tests and threats found once are kept for later rounds."""
    coders, testers, auditors = crew(plan.effort, job.tier)
    have_red = any(t.red for t in tests if t.tester > 0)
    changes, written, found = await asyncio.gather(
        asyncio.gather(*(code(job, brief, plan, n, number, tests, feedback) for n in range(1, coders + 1))),
        asyncio.gather(*(write_tests(job, brief, plan, n, number) for n in range(1, testers + 1) if not have_red)),
        asyncio.gather(*(audit(job, brief, plan, n) for n in range(1, auditors + 1) if not audits)),
    )
    return list(changes), (*tests, *(t for t in written if t.red)), (*audits, *found)


async def code(
    job: Job,
    brief: Brief,
    plan: Plan,
    candidate: int,
    number: int,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
) -> tuple[Change, ...]:
    """One candidate: every unit of the plan, those that do not wait for each other at the same time."""
    done: tuple[Change, ...] = ()
    for wave in in_waves(plan.units):
        done += tuple(
            await asyncio.gather(
                *(write_code(job, brief, plan, unit, candidate, number, tests, feedback, done) for unit in wave)
            )
        )
    return done
