"""Evidence as steps of a run: measured once per commit, kept, and laid out for people."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from prefect import task

from tasks import paper, services
from tasks.evidence import gather_evidence
from tasks.exemptions import EXEMPT
from tasks.intents import intent_of
from tasks.models import Brief, Candidate, Evidence, Exemption, Finding, Job

DIFF_CHARS = 20_000
SMALL_DIFF_CHARS = 2_500
"""How much of a diff a capable and a small model are shown."""


def evidence_key(job: Job, brief: Brief, candidate: Candidate) -> str:
    """Cache key: the commit, the policy and the limits it is measured by, the exemption asked for, and the new tests."""
    said = json.dumps([
        job.repository.base_sha, candidate.head_sha, brief.policy.model_dump(), [t.files for t in candidate.tests],
        size_limits(job), *filter(None, [asked_exemption(job)]),
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
    max_files, max_lines = size_limits(job)
    evidence = await gather_evidence(
        services.mirror(job.repository),
        services.sandbox(),
        services.worktrees(),
        brief,
        candidate.head_sha,
        candidate.tests,
        max_files=max_files,
        max_lines=max_lines,
        asked=asked_exemption(job),
    )
    await paper.leave(job, f"diff-{candidate.number}-{round}", f"```diff\n{evidence.diff}\n```")
    await paper.leave(job, f"evidence-{candidate.number}-{round}", as_markdown(evidence))
    return evidence


def asked_exemption(job: Job) -> Exemption | None:
    """What the ticket asks for, where that may need no red test. An application always needs one."""
    asked = intent_of(job.ticket)
    return next((kind for kind in EXEMPT if kind == asked), None) if job.greenfield is None else None


def size_limits(job: Job) -> tuple[int, int]:
    """Files and lines that the change of this job may touch."""
    if job.greenfield is not None:
        return job.greenfield.max_files, job.greenfield.max_lines
    return services.settings().max_diff_files, services.settings().max_diff_lines


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


def evidence_at_hand(brief: Brief) -> bool:
    """Whether a change can be proved without new tests: an example of the ticket fails, or a test that the ticket names."""
    said = f"{brief.ticket.title}\n{brief.ticket.body}"
    own = brief.ticket_tests is not None and bool(brief.ticket_tests.red)
    return own or any(name in said for name in brief.baseline.ids("failed"))


def anchored(finding: Finding, evidence: Evidence) -> Finding:
    """A role's finding outside the lines of the diff loses its severity: it judges the change, not the neighbourhood."""
    inside = any(finding.line in lines for path, lines in shown_lines(evidence.diff) if path == finding.path)
    return finding if inside else finding.model_copy(update={"severity": "low"})


def shown_lines(diff: str) -> Iterator[tuple[str, range]]:
    """Path and lines of every hunk of a patch as git writes it, on the new side; of a deleted file on the old one."""
    old = path = ""
    left = 0
    for line in diff.split("\n"):
        if left > 0:
            left -= 0 if line.startswith("\\") else 2 if line.startswith(" ") or not line else 1
        elif line.startswith("--- "):
            old = line[4:].removeprefix("a/").rstrip("\t")
        elif line.startswith("+++ "):
            new = line[4:].removeprefix("b/").rstrip("\t")
            path = old if new == "/dev/null" else new
        elif hunk := re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", line):
            first, size, start, length = (int(number or 1) for number in hunk.groups())
            left = size + length
            yield path, range(start, start + length) if length else range(first, first + size)


def facts(evidence: Evidence) -> str:
    """The evidence in one line for a prompt."""
    failures = "; ".join(evidence.failures) or "nothing failing"
    failures += f". {evidence.proof}" if evidence.exemption else ""
    return (
        f"{len(evidence.fixed)} test(s) fail before and pass after, {len(evidence.broken)} broken, "
        f"+{evidence.lines_added} -{evidence.lines_removed} lines in {len(evidence.files)} file(s); {failures}"
    )


def as_markdown(evidence: Evidence) -> str:
    failures = [f"- {reason}" for reason in evidence.failures] or ["- nothing forbids ACCEPT"]
    fixed = [f"- `{name}`" for name in evidence.fixed] or [
        f"- none. {evidence.proof}." if evidence.exemption else "- none"
    ]
    return "\n".join([
        f"+{evidence.lines_added} -{evidence.lines_removed} in {', '.join(evidence.files)}", "",
        "Fail before, pass after:", *fixed, "", "Against it:", *failures,
    ])  # fmt: skip
