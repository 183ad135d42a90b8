"""`refine`: one round on an open pull request or branch (T9, T15): what is wrong is mended, judged and pushed, or said."""

from __future__ import annotations

import time

from prefect import flow

from tasks.coding import write_code
from tasks.collecting import collect
from tasks.delivery import cost_so_far
from tasks.holding import holding, take_hold
from tasks.intake import alone
from tasks.judging import judge
from tasks.measuring import measure
from tasks.models import Audit, Candidate, Evidence, FactoryError, Feedback, Plan, Result, Review, Verdict
from tasks.proving import attach, prove
from tasks.refining import (
    Ended,
    Round,
    Standing,
    as_it_is,
    brief_round,
    end_of,
    give_up,
    let_go,
    plan_for,
    settle,
    still_marked,
    take_up,
    unchanged,
    wanted_of,
)
from tasks.review import review
from tasks.scribe import Words, write_up
from tasks.security import audit
from tasks.stewarding import round_ticket


@flow(name="refine", flow_run_name="{ticket}", persist_result=True)
async def refine(ticket: str, repository: str, board: str = "folder", token: int | None = None) -> Ended | None:
    """Work the round that is due on the pull request of `ticket`; None when none is.

    `token` is the claim a steward made for this run; without one the run claims the ticket itself. Raises as `work_ticket`.
    """
    started = time.monotonic()
    found = round_ticket(board, ticket, repository)
    with alone(found):
        claim = take_hold(found, repository, token)
        async with holding(claim):
            round = await take_up(found, repository, claim, token is not None)
            if round is None:
                let_go(claim, found, "nothing was to do on its pull request")
                return None
            try:
                return await work(round)
            except FactoryError as error:
                await give_up(round, error, time.monotonic() - started)
                raise


async def work(round: Round) -> Ended:
    """Proof, or: examine what needs no coder, have the rest mended, and tell the pull request."""
    if round.kind == "qa":
        return await attach(round, await prove(round))
    standing, plan = await brief_round(round), plan_for(round)
    ended = await mend(round, standing, plan)
    if ended.head_sha and ended.result:
        text = await write_up(round.job, plan, ended.result, await cost_so_far(round.job), Words())
        ended = ended.model_copy(update={"text": text})
    await settle(round, ended)
    return ended


async def mend(round: Round, standing: Standing, plan: Plan) -> Ended:
    """Review, threat model, targeted fixes, verdict. A branch with nothing to mend only gets its verdict."""
    audits: tuple[Audit, ...] = ()
    must_fix, number, candidate = round.must_fix, 0, as_it_is(round, standing)
    if round.kind == "refine":
        audits = (await audit(round.job, standing.now, plan, 1),)
    if round.kind == "refine" or not must_fix:
        evidence, opinion, verdict = await weigh(round, standing, plan, candidate, audits, 0)
        must_fix += wanted_of(opinion, verdict)
    while must_fix and number < round.job.max_rounds:
        number += 1
        feedback = Feedback(must_fix=must_fix, changes=candidate.changes)
        change = await write_code(round.job, standing.now, plan, plan.units[0], 1, number, (), feedback, ())
        candidate = await collect(round.job, 1, number, (change,), ())
        if candidate.head_sha == round.start:
            return unchanged(round, change.explanation)
        candidate = candidate.model_copy(update={"tests": standing.tests})
        evidence, opinion, verdict = await weigh(round, standing, plan, candidate, audits, number)
        must_fix = verdict.must_fix if verdict.decision == "REVISE" else ()
    return end_of(
        round,
        Result(candidate=candidate, evidence=evidence, review=opinion, audits=audits, verdict=verdict, rounds=number),
    )


async def weigh(
    round: Round, standing: Standing, plan: Plan, candidate: Candidate, audits: tuple[Audit, ...], number: int
) -> tuple[Evidence, Review, Verdict]:
    """Measure a candidate against the base branch, have it reviewed, and judge it."""
    evidence = still_marked(round, await measure(round.job, standing.judged, candidate, number))
    opinion = await review(round.job, standing.now, plan, candidate, evidence, number)
    verdict = await judge(round.job, standing.now, plan, candidate, evidence, opinion, audits, number)
    return evidence, opinion, verdict
