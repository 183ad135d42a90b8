"""The scribe: the pull request's text. Everything in it was measured or is marked as the model's opinion."""

from __future__ import annotations

import re

from prefect import task

from infra.redaction import redact
from tasks import paper
from tasks.delivery import cost_table
from tasks.models import Audit, Evidence, Frozen, Job, Plan, Result, Review, TestReport, Usage


class PullRequestText(Frozen):
    """Title (one line) and body (Markdown) of a pull request."""

    title: str
    body: str


@task(name="scribe", task_run_name="scribe")
async def write_up(job: Job, plan: Plan, result: Result, usage: Usage) -> PullRequestText:
    """The pull request's text, by rule."""
    body = pull_request_body(job, plan, result, usage)
    await paper.leave(job, "pull-request", body)
    return PullRequestText(title=redact(pull_request_title(job)), body=redact(body))


def pull_request_title(job: Job) -> str:
    """`<ticket key>: <ticket title>`, one line, at most 120 characters."""
    return f"{job.ticket.key}: {' '.join(job.ticket.title.split())}"[:120]


def pull_request_body(job: Job, plan: Plan, result: Result, usage: Usage) -> str:
    """Markdown: what changed and why, diff stat, evidence table, findings, verdict, cost."""
    evidence, verdict = result.evidence, result.verdict
    words = [f"- {quoted(c.explanation)}" for c in result.candidate.changes if c.explanation]
    base = f"`{job.repository.base_branch}` at `{job.repository.base_sha[:12]}`"
    return "\n".join(
        [
            f"Ticket: {job.ticket.url or job.ticket.key}. Base: {base}.",
            "",
            quoted(plan.summary),
            *(["", "What was changed, in the coder's words:", *words] if words else []),
            "",
            "## Diff",
            f"{len(evidence.files)} file(s), +{evidence.lines_added} -{evidence.lines_removed}",
            *(f"- {code(path)}" for path in evidence.files),
            "",
            "## Evidence",
            *_evidence_table(evidence),
            "",
            "## Findings",
            *_findings(evidence, result.review, result.audits),
            "",
            "## Verdict",
            f"**{verdict.decision}** in round {result.rounds}, decided by {verdict.decided_by}.",
            *(f"- {quoted(reason)}" for reason in verdict.reasons),
            f"- The model's advice: {quoted(verdict.advice)}",
            "",
            "## Cost",
            *cost_table(job, usage),
        ]
    )


def quoted(text: str) -> str:
    """Words of a model, a ticket or a tool as one line of plain text: no Markdown, HTML, mention or reference survives."""
    line = re.sub(r"([\\`*_\[\]~|!])", r"\\\1", " ".join(text.split()))
    line = line.replace("<", "&lt;").replace("@", "@\u200b").replace("#", "#\u200b").replace("://", ":\u200b//")
    return re.sub(r"^([>#+-]|\d+[.)])", r"\\\1", line)


def code(text: str) -> str:
    """A test id, path or command as a code span it cannot leave."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("@", "@\u200b") + "`"


def _evidence_table(evidence: Evidence) -> list[str]:
    rows = [
        "| tests | before | after |",
        "|---|---|---|",
        f"| the repository's | {_counts(evidence.before)} | {_counts(evidence.after)} |",
    ]
    if evidence.new_tests_before and evidence.new_tests_after:
        rows.append(f"| new | {_counts(evidence.new_tests_before)} | {_counts(evidence.new_tests_after)} |")
    rows += ["", f"Command: {code(evidence.after.command)}"]
    rows += [f"- fails before, passes after: {code(name)}" for name in evidence.fixed[:20]]
    rows += [f"- still fails (written by a model, may be wrong): {code(name)}" for name in evidence.still_red[:20]]
    return rows


def _counts(report: TestReport) -> str:
    if report.error:
        return f"not usable: {quoted(report.error)}"
    return f"{len(report.ids('passed'))} passed, {len(report.ids('failed'))} failed"


def _findings(evidence: Evidence, review: Review, audits: tuple[Audit, ...]) -> list[str]:
    tools = [f for f in evidence.findings if f.new]
    lines = [
        f"- {f.source} {f.severity}: {quoted(f.message)} ({code(f'{f.path}:{f.line}')})"
        for f in (*tools, *review.findings)
    ]
    lines += [
        f"- auditor, {t.category}: {quoted(t.threat)} (enters by {quoted(t.vector)})" for a in audits for t in a.threats
    ]
    return [
        *(lines or ["None new by the tools, none by the reviewer."]),
        *([f"Review: {quoted(review.summary)}"] if review.summary else []),
    ]
