"""`work_ticket`: one ticket becomes a reviewed, tested pull request. Read this first; each line is a step in `tasks/`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect import flow

from flows.playbooks import work_operation
from tasks.attempts import close, give_back
from tasks.bugs import record_bug
from tasks.building import pack
from tasks.coding import in_waves, write_code
from tasks.collecting import collect, receive, whole
from tasks.corpus import keep_examples
from tasks.crew import crew_of, leave_crew
from tasks.delivery import archive, cost_so_far
from tasks.feedback import choose_level
from tasks.holding import holding, take_hold, waiting_for_their_turn
from tasks.intake import alone, find_repository, find_ticket, take_in, write_brief
from tasks.judging import judge
from tasks.lessons import learn, learning_from_failure, settle, with_corrections
from tasks.measuring import evidence_at_hand, measure, objections, rank
from tasks.memory import remember, remember_failure
from tasks.models import (
    Assignment,
    Audit,
    Brief,
    Candidate,
    Change,
    Evidence,
    FactoryError,
    Feedback,
    Greenfield,
    Job,
    Outcome,
    Plan,
    Rejection,
    Result,
    Review,
    TestChange,
    WorkUnit,
)
from tasks.planning import make_plan, mending, turn_down
from tasks.publishing import publish, reject
from tasks.review import review
from tasks.scribe import Words, find_words, write_up
from tasks.security import audit, audit_diff
from tasks.testing import credible_tests, write_tests

logger = logging.getLogger(__name__)


@flow(name="work-ticket", flow_run_name="{ticket}", persist_result=True, on_failure=[record_bug])
async def work_ticket(
    ticket: str,
    repository: str | None = None,
    board: str = "folder",
    token: int | None = None,
    greenfield: Greenfield | None = None,
) -> Outcome:
    """Work `ticket` of `board` on `repository` (a configured name, a path, or what the ticket routes to).

    `token` is the claim a dispatcher made for this run; without one the run claims the ticket itself. With `greenfield` the
    ticket is the specification of a whole application (`flows.build`). Returns how it ended, ACCEPT or REJECT. Raises
    ConfigError, InfraError (nothing burnt, run again), NeedsHuman or WorkFailed.
    """
    started = time.monotonic()
    found = find_ticket(ticket, board)
    with alone(found):
        routed = repository if token is not None and repository else find_repository(found, repository)[0]
        claim = take_hold(found, routed, token)
        async with holding(claim):
            job = await take_in(found, repository, claim, token is not None, greenfield)
            try:
                outcome = await deliver(job, started)
            except FactoryError as error:
                await remember_failure(job, error)  # before its end is told: a run that is killed here comes back
                await give_back(job, error, time.monotonic() - started)
                raise
            await remember(job, outcome)
            await close(job, outcome)
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
                logger.warning("board=%s ticket=%s outcome=failed reason=%r", each.board, each.ticket, str(error))
    return outcomes


async def deliver(job: Job, started: float) -> Outcome:
    """Brief, plan, rounds of work until the judge decides, then the pull request or the reason why there is none."""
    operated = await work_operation(job, started)
    if operated is not None:
        return operated
    brief = await write_brief(job)
    plan = await make_plan(job, brief)
    if plan.rejection is not None:
        return await decline(job, plan.rejection, started)
    job = await choose_level(job, plan)
    brief = await with_corrections(job, brief, plan)
    async with learning_from_failure(job, plan):
        result = await decide_in_rounds(job, brief, plan)
    accepted = result.verdict.decision == "ACCEPT"
    has_words = accepted and crew_of(job, plan).own_words
    words = await find_words(job, brief, plan, result) if has_words else Words()
    costs = await cost_so_far(job)
    await leave_crew(job, plan, costs)
    await archive(job, plan, result, costs.total)
    pull_request, packed = None, None
    if accepted:
        pull_request = await publish(job, result.candidate, await write_up(job, plan, result, costs, words))
        packed = await pack(job, result.candidate) if job.greenfield else None
        await keep_examples(job, plan, result)
    else:
        await reject(job, result.verdict)
    await settle(job, result)
    return Outcome(
        ticket=job.ticket.key,
        decision=result.verdict.decision,
        reasons=result.verdict.reasons,
        pull_request=pull_request,
        evidence=result.evidence,
        rounds=result.rounds,
        usage=costs.total,
        seconds=time.monotonic() - started,
        warnings=job.warnings,
        archive=packed,
    )


async def decline(job: Job, rejection: Rejection, started: float) -> Outcome:
    """The end of a ticket that the architect showed to need no code: the reason on the ticket, and nothing else."""
    verdict = await turn_down(job, rejection)
    costs = await cost_so_far(job)
    await reject(job, verdict)
    seconds = time.monotonic() - started
    return Outcome(ticket=job.ticket.key, decision="REJECT", reasons=verdict.reasons, usage=costs.total, seconds=seconds,
                   warnings=job.warnings)  # fmt: skip


async def decide_in_rounds(job: Job, brief: Brief, plan: Plan) -> Result:
    """Work, measure, review and judge; REVISE starts the next round with what must be fixed. The best candidate is kept."""
    tests: tuple[TestChange, ...] = (brief.ticket_tests,) if brief.ticket_tests else ()
    feedback = Feedback()
    measured: list[tuple[Candidate, Evidence]] = []
    refused: list[Candidate] = []
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
        opinion, looks = await read(job, brief, plan, candidate, evidence, number)
        verdict = await judge(job, brief, plan, candidate, evidence, opinion, looks, number)
        await learn(job, plan, evidence)
        if verdict.decision != "REVISE":
            break
        refused.append(candidate)
        feedback = Feedback(must_fix=verdict.must_fix, changes=whole(job, candidate))
    return Result(candidate=candidate, evidence=evidence, review=opinion, audits=(*audits, *looks), verdict=verdict,
                  rounds=number, refused=tuple(refused))  # fmt: skip


async def read(
    job: Job, brief: Brief, plan: Plan, candidate: Candidate, evidence: Evidence, number: int
) -> tuple[Review, tuple[Audit, ...]]:
    """Reviewer and auditors read the change at the same time. What evidence refuses is not audited."""
    crew = crew_of(job, plan)
    auditors = crew.auditors if crew.second_look and not objections(evidence, candidate) else 0
    async with side_by_side() as group:
        reviews = [group.create_task(review(job, brief, plan, candidate, evidence, number))] if crew.reviewers else []
        looks = [
            group.create_task(audit_diff(job, brief, plan, candidate, evidence, n, number))
            for n in range(1, auditors + 1)
        ]
    return reviews[0].result() if reviews else Review(), tuple(look.result() for look in looks)


async def work(
    job: Job,
    brief: Brief,
    plan: Plan,
    number: int,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
    audits: tuple[Audit, ...],
) -> tuple[list[tuple[Change, ...]], tuple[TestChange, ...], tuple[Audit, ...]]:
    """One round: coders, testers and auditors at the same time. Tests and threats found once are kept for later rounds.

    Returns the candidates (each the changes of all units), the tests and the audits.
    """
    crew = crew_of(job, plan)
    enough = any(t.red for t in tests if t.tester > 0) or (not crew.tests_anyway and evidence_at_hand(brief))
    async with side_by_side() as group:
        coded = group.create_task(code(job, brief, plan, crew.coders, number, tests, feedback))
        tested = [
            group.create_task(write_tests(job, brief, plan, n, number))
            for n in range(1, crew.testers + 1)
            if not enough
        ]
        audited = [group.create_task(audit(job, brief, plan, n)) for n in range(1, crew.auditors + 1) if not audits]
    written = tuple(t.result() for t in tested)
    return coded.result(), (*tests, *(t for t in written if t.red)), (*audits, *(a.result() for a in audited))


async def code(
    job: Job, brief: Brief, plan: Plan, coders: int, number: int, tests: tuple[TestChange, ...], feedback: Feedback
) -> list[tuple[Change, ...]]:
    """Several units are shared out among the coders and make one candidate; of one unit every coder makes a candidate.

    In a later round the first coder alone mends what the judge named.
    """
    units, coders = (plan.units, coders) if number == 1 else (mending(plan), 1)
    if len(units) > 1:
        candidates = [await share_out(job, brief, plan, units, coders, number, tests, feedback)]
    else:
        async with side_by_side() as group:
            made = [
                group.create_task(write_code(job, brief, plan, units[0], n, number, tests, feedback, ()))
                for n in range(1, coders + 1)
            ]
        candidates = [(each.result(),) for each in made]
    await receive(job, plan, number, [change for changes in candidates for change in changes])
    return candidates


async def share_out(
    job: Job,
    brief: Brief,
    plan: Plan,
    units: tuple[WorkUnit, ...],
    coders: int,
    number: int,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
) -> tuple[Change, ...]:
    """Every unit once: those that do not wait for each other at the same time, as many as there are coders."""
    done: tuple[Change, ...] = ()
    for wave in in_waves(units):
        given = done
        for start in range(0, len(wave), coders):
            async with side_by_side() as group:
                made = [
                    group.create_task(write_code(job, brief, plan, unit, n, number, tests, feedback, given))
                    for n, unit in enumerate(wave[start : start + coders], 1)
                ]
            done += tuple(each.result() for each in made)
    return done


@asynccontextmanager
async def side_by_side() -> AsyncIterator[asyncio.TaskGroup]:
    """Steps at the same time. The first that fails ends the others, and its error is the one that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
