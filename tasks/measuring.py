"""Evidence as steps of a run: measured once per commit, kept, and laid out for people."""

from __future__ import annotations

import hashlib
import json

from prefect import task

from tasks import paper, services
from tasks.evidence import gather_evidence
from tasks.models import Brief, Candidate, Evidence, Job

DIFF_CHARS = 20_000
SMALL_DIFF_CHARS = 2_500
"""How much of a diff a capable and a small model are shown."""


def evidence_key(job: Job, brief: Brief, candidate: Candidate) -> str:
    """Cache key: the commit, the policy it is tested by and the new tests."""
    said = json.dumps([
        job.repository.base_sha, candidate.head_sha, brief.policy.model_dump(), [t.files for t in candidate.tests],
    ], sort_keys=True)  # fmt: skip
    return f"evidence-{hashlib.sha256(said.encode()).hexdigest()}"


@task(
    name="evidence",
    task_run_name="evidence {candidate.number}.{round}",
    persist_result=True,
    cache_key_fn=lambda _, a: evidence_key(a["job"], a["brief"], a["candidate"]),
)
async def measure(job: Job, brief: Brief, candidate: Candidate, round: int) -> Evidence:
    """All facts about one candidate, from fresh checkouts."""
    settings = services.settings()
    evidence = await gather_evidence(
        services.mirror(job.repository),
        services.sandbox(),
        services.worktrees(),
        brief,
        candidate.head_sha,
        candidate.tests,
        max_files=settings.max_diff_files,
        max_lines=settings.max_diff_lines,
    )
    await paper.leave(job, f"diff-{candidate.number}-{round}", f"```diff\n{evidence.diff}\n```")
    await paper.leave(job, f"evidence-{candidate.number}-{round}", as_markdown(evidence))
    return evidence


def objections(evidence: Evidence, candidate: Candidate) -> tuple[str, ...]:
    """Everything measured that forbids ACCEPT, one sentence each.

    New tests that are still red count, those from the ticket and those a model wrote; the latter were dropped before
    where they are not credible (`tasks.testing.credible_tests`).
    """
    from_ticket = {name for t in candidate.tests if t.tester == 0 for name in t.red}
    said = list(evidence.failures)
    said += [f"Units collide in {path}." for path in candidate.conflicts]
    for name in evidence.still_red:
        whose = "The ticket's own example" if name in from_ticket else "A new test"
        said.append(f"{whose} still fails: {name}")
    return tuple(said)


def rank(candidate: Candidate, evidence: Evidence) -> tuple[int, int, int, int, int, int]:
    """Orders candidates, best highest: no objection, breaks least, fixes most, leaves least red, latest round, smallest diff."""
    return (
        -len(objections(evidence, candidate)),
        -len(evidence.broken),
        len(evidence.fixed),
        -len(evidence.still_red),
        candidate.round,
        -(evidence.lines_added + evidence.lines_removed),
    )


def facts(evidence: Evidence) -> str:
    """The evidence in one line for a prompt."""
    failures = "; ".join(evidence.failures) or "nothing failing"
    return (
        f"{len(evidence.fixed)} test(s) fail before and pass after, {len(evidence.broken)} broken, "
        f"+{evidence.lines_added} -{evidence.lines_removed} lines in {len(evidence.files)} file(s); {failures}"
    )


def as_markdown(evidence: Evidence) -> str:
    failures = [f"- {reason}" for reason in evidence.failures] or ["- nothing forbids ACCEPT"]
    fixed = [f"- `{name}`" for name in evidence.fixed] or ["- none"]
    return "\n".join([
        f"+{evidence.lines_added} -{evidence.lines_removed} in {', '.join(evidence.files)}", "",
        "Fail before, pass after:", *fixed, "", "Against it:", *failures,
    ])  # fmt: skip
