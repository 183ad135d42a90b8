"""The branch, the pull request and the ticket's side of it. Every side effect looks at what is there already."""

from __future__ import annotations

import asyncio

from prefect import task

from infra.git import branch_name
from tasks import services
from tasks.holding import fence
from tasks.models import Candidate, Job, PullRequest, Verdict
from tasks.scribe import PullRequestText


@task(name="publish", task_run_name="publish")
async def publish(job: Job, candidate: Candidate, text: PullRequestText) -> PullRequest:
    """Push `agent/<ticket>`, open or update its one draft pull request, and say so on the ticket."""
    return await asyncio.to_thread(_publish, job, candidate, text)


def _publish(job: Job, candidate: Candidate, text: PullRequestText) -> PullRequest:
    branch = branch_name(job.ticket.key)
    repository = job.repository
    with fence(job):
        services.mirror(repository).push(repository.remote, branch, candidate.head_sha)
        pull_request = services.forge(repository.name).publish(
            branch=branch, base=repository.base_branch, head_sha=candidate.head_sha, title=text.title, body=text.body,
            draft=_is_draft(repository.name),
        )  # fmt: skip
        services.ledger(job.ticket.board).record_pull_request(job.ticket.key, pull_request)
        services.board(job.ticket.board).comment(
            job.ticket.key,
            f"Draft pull request: {pull_request.url} (branch `{branch}`)",
            marker=f"pull-request-{job.ticket.key}",
        )
        move(job, services.board_section(job.ticket.board).states.review)
    return pull_request


def _is_draft(repository: str) -> bool:
    """A person makes a draft ready; where the steward merges there may be none."""
    section = services.settings().repositories.get(repository)
    return section is None or section.steward.merge == "never"


def move(job: Job, state: str) -> None:
    """Move the ticket on the board and remember it in the ledger."""
    services.board(job.ticket.board).move(job.ticket.key, state)
    services.ledger(job.ticket.board).record_ticket(job.ticket.model_copy(update={"state": state}), job.repository.name)


@task(name="say why not", task_run_name="say why not")
async def reject(job: Job, verdict: Verdict) -> None:
    """A REJECT opens nothing: the ticket says why and moves to `rejected`, or back when another attempt follows."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    text = f"No pull request after attempt {job.attempt}:\n{reasons}"
    states = services.board_section(job.ticket.board).states

    def write() -> None:
        with fence(job):
            services.board(job.ticket.board).comment(job.ticket.key, text, marker=f"verdict-{job.attempt}")
            move(job, states.rejected if job.final else job.ticket.state)

    await asyncio.to_thread(write)
