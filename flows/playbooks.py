"""`run_playbook`: one run of a playbook to its end, to its rollback, or to the approval that it waits for."""

from __future__ import annotations

from prefect import flow
from prefect.transactions import atransaction

from tasks.approvals import ask_people, heard
from tasks.models import Job, Outcome
from tasks.operating import choose, is_labelled, may_be_operation, operate, report
from tasks.playbooks import (
    GateClosed,
    Ran,
    StepFailed,
    Stuck,
    Work,
    at_work,
    be_stuck,
    conclude,
    perform,
    ran,
    succeed,
    unwind,
    wake_ticket,
)


@flow(name="run-playbook", flow_run_name="{run}", persist_result=True)
async def run_playbook(run: str, suspend: bool = True) -> Ran:
    """Work the run that the journal holds under this id, from where it stands. Started again it repeats no finished step.

    At an approval that is not given yet, a run of a deployment is suspended (`suspend`); any other one ends here and is
    started again. A parked ticket goes on with its run itself, so that its claim guards it. Raises InfraError (nothing is
    lost, run it again) and ConfigError.
    """
    while True:
        stands = ran(run)
        if stands.state == "waiting" and not await heard(run, suspend):
            return stands
        if wake_ticket(run):
            return ran(run)
        stands = ran(run)
        if stands.state in ("succeeded", "undone", "stuck"):
            return stands
        async with at_work(run) as work:
            stands = await go_on(work)
        if stands.state != "waiting":
            wake_ticket(run)  # it was parked meanwhile
            return stands
        if not suspend:
            return stands


async def go_on(work: Work) -> Ran:
    """All steps in order, in one transaction: when one fails, those before it are taken back in reverse."""
    state = work.now().state
    if state == "running":
        try:
            async with atransaction():
                for step in work.steps:
                    await perform(work, step)
        except GateClosed:
            await ask_people(work)
            return ran(work.id)
        except Stuck as error:
            return be_stuck(work, error)
        except StepFailed:
            return conclude(work)
        return succeed(work)
    if state == "undoing":
        await unwind(work)
        return conclude(work)
    return ran(work.id)


async def work_operation(job: Job, started: float) -> Outcome | None:
    """A ticket that asks for an operation: by the playbook that fits, without a model; else, when it is labelled, by an agent.

    None: it is work for the coders. Raises NeedsHuman when a person has to approve, to look, or to do it.
    """
    if not may_be_operation(job):
        return None
    run = await choose(job)
    if run is not None:
        return await report(job, await run_playbook(run, suspend=False), started)
    return await operate(job, started) if is_labelled(job.ticket) else None
