"""`work_ticket`: one ticket becomes a reviewed, tested pull request. Read this first; each line is a step in `tasks/`."""

from __future__ import annotations

import asyncio
import time

from prefect import flow

from tasks.coding import in_waves, write_code
from tasks.collecting import collect
from tasks.delivery import archive, cost_so_far
from tasks.intake import alone, close, give_back, take_in, write_brief
from tasks.judging import judge
from tasks.measuring import measure, rank
from tasks.memory import remember
from tasks.models import (
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


@flow(name="work-ticket", flow_run_name="{ticket}", persist_result=True)
async def work_ticket(ticket: str, repository: str | None = None) -> Outcome:
    """Work `ticket` of the board on `repository` (a configured name, a path, or what the ticket names).

    Returns how it ended, ACCEPT or REJECT. Raises ConfigError, InfraError (nothing burnt, run again) or WorkFailed.
    """
    started = time.monotonic()
    with alone(ticket):
        job = await take_in(ticket, repository)
        try:
            outcome = await deliver(job, started)
        except FactoryError as error:
            await give_back(job, error)
            raise
        await close(job, outcome)
        await remember(job, outcome)
        return outcome


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
