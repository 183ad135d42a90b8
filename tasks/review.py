"""The reviewer: looks at one candidate from four angles. An opinion: advice with a small model, heard with a capable one."""

from __future__ import annotations

from typing import Literal

from prefect import task
from pydantic import BaseModel, Field

from tasks import paper
from tasks.answers import ask_for
from tasks.asking import asker_for, chat
from tasks.context import SYSTEM, fenced
from tasks.measuring import DIFF_CHARS, SMALL_DIFF_CHARS, facts, objections
from tasks.models import Brief, Candidate, Evidence, Finding, Job, ModelRequest, Plan, Review, Severity

PROMPT_VERSION = "reviewer-1"

SMALL_INSTRUCTION = """\
This change was made for the ticket:
{diff}
You are the reviewer. Answer with one JSON object: {{"summary": one sentence on what the change does and whether it does \
what the ticket asks}}."""

INSTRUCTION = """\
This change was made for the ticket:
{diff}

What the factory measured: {facts}
The plan's acceptance checks: {acceptance}

You are the reviewer. Look from four angles: correctness, style, architecture (does it fit the code around it), coverage \
(what the tests miss). Point only at lines of the diff. Severity `high` means it must not be merged (wrong result, data \
loss, broken contract, vulnerability). Answer with one JSON object: {{"summary", "findings": [{{"angle": \
"correctness|style|architecture|coverage", "severity": "critical|high|medium|low", "path", "line", "message"}}]}}."""


class DraftFinding(BaseModel):
    angle: Literal["correctness", "style", "architecture", "coverage"] = "correctness"
    severity: Severity = "low"
    path: str = ""
    line: int = 0
    message: str


class DraftReview(BaseModel):
    summary: str = Field(default="", max_length=400)
    findings: list[DraftFinding] = Field(default=[], max_length=20)


class SmallReview(BaseModel):
    summary: str = Field(default="", max_length=300)


@task(name="reviewer", task_run_name="reviewer {round}")
async def review(job: Job, brief: Brief, plan: Plan, candidate: Candidate, evidence: Evidence, round: int) -> Review:
    """One review of the candidate. An unusable answer is a review without findings; what evidence refuses already is
    shown to a capable model only, whose words can help the next round.
    """
    if job.tier == "small" and objections(evidence, candidate):
        return Review()
    asker = asker_for(job, "reviewer", PROMPT_VERSION, candidate=candidate.number, round=round)
    request = ModelRequest(
        messages=chat(brief.prefix, SYSTEM, _instruction(job, brief, plan, evidence)),
        max_tokens=120 if job.tier == "small" else 2_000,
        seed=job.seed,
    )
    if job.tier == "small":
        short, usage = await ask_for(SmallReview, asker, request, job.model)
        found = Review(summary=short.summary if short else "", usage=usage)
    else:
        draft, usage = await ask_for(DraftReview, asker, request, job.model)
        found = Review(
            summary=draft.summary if draft else "",
            findings=tuple(_finding(f, evidence) for f in draft.findings) if draft else (),
            usage=usage,
        )
    await paper.leave(job, f"review-{round}", as_markdown(found))
    return found


def _instruction(job: Job, brief: Brief, plan: Plan, evidence: Evidence) -> str:
    nonce = brief.nonce
    if job.tier == "small":
        return SMALL_INSTRUCTION.format(diff=fenced(evidence.diff[:SMALL_DIFF_CHARS], nonce))
    return INSTRUCTION.format(
        diff=fenced(evidence.diff[:DIFF_CHARS], nonce), facts=facts(evidence), acceptance="; ".join(plan.acceptance)
    )


def _finding(draft: DraftFinding, evidence: Evidence) -> Finding:
    """A finding outside the diff's files loses its severity: a reviewer judges the change, not the neighbourhood."""
    severity = draft.severity if draft.path in evidence.files else "low"
    return Finding(
        source=f"reviewer ({draft.angle})", severity=severity, message=draft.message, path=draft.path, line=draft.line
    )


def as_markdown(review: Review) -> str:
    rows = [f"| {f.severity} | {f.source} | {f.path}:{f.line} | {f.message} |" for f in review.findings]
    table = (
        ["", "| severity | source | place | finding |", "|---|---|---|---|", *rows] if rows else ["", "No findings."]
    )
    return "\n".join([review.summary or "(no summary)", *table])
