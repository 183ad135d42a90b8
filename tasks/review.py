"""The reviewer: looks at one candidate from four angles. An opinion: advice with a small model, heard with a capable one."""

from __future__ import annotations

from typing import Literal

from prefect import task
from pydantic import BaseModel, Field

from tasks import paper
from tasks.answers import ask_for
from tasks.asking import Asker, asker_for, chat
from tasks.context import SYSTEM, fenced
from tasks.measuring import DIFF_CHARS, SMALL_DIFF_CHARS, anchored, facts, objections
from tasks.models import Brief, Candidate, Evidence, Finding, Job, ModelRequest, Plan, Review, Severity, Usage
from tasks.paper import Signature
from tasks.seats import Seat, seat
from tasks.verification import verified_findings, verified_text

PROMPT_VERSION = "reviewer-2"

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
    at = seat(job, "reviewer", plan.effort)
    if at.tier == "small" and objections(evidence, candidate):
        return Review()
    asker = asker_for(job, "reviewer", PROMPT_VERSION, candidate=candidate.number, round=round, effort=plan.effort)
    request = ModelRequest(
        messages=chat(brief.prefix, SYSTEM, _instruction(at, brief, plan, evidence)),
        max_tokens=120 if at.tier == "small" else 2_000,
        seed=job.seed,
    )
    draft, usage = await _answer(asker, request, at)
    found = Review(
        summary=await verified_text(job, brief, asker, draft.summary) if draft else "",
        findings=await verified_findings(job, brief, asker, tuple(_finding(f, evidence) for f in draft.findings))
        if draft
        else (),
        usage=usage,
    )
    signed = Signature(role="reviewer", round=round, model=at.model, prompt_version=PROMPT_VERSION,
                       status="success" if draft else "fail", usage=usage)  # fmt: skip
    await paper.leave_sheet(job, f"review-{round}", signed, as_markdown(found), found)
    return found


async def _answer(asker: Asker, request: ModelRequest, at: Seat) -> tuple[DraftReview | None, Usage]:
    if at.tier == "small":
        short, usage = await ask_for(SmallReview, asker, request, at.model)
        return (DraftReview(summary=short.summary) if short else None), usage
    return await ask_for(DraftReview, asker, request, at.model)


def _instruction(at: Seat, brief: Brief, plan: Plan, evidence: Evidence) -> str:
    nonce = brief.nonce
    if at.tier == "small":
        return SMALL_INSTRUCTION.format(diff=fenced(evidence.diff[:SMALL_DIFF_CHARS], nonce))
    return INSTRUCTION.format(
        diff=fenced(evidence.diff[:DIFF_CHARS], nonce), facts=facts(evidence), acceptance="; ".join(plan.acceptance)
    )


def _finding(draft: DraftFinding, evidence: Evidence) -> Finding:
    return anchored(Finding(source=f"reviewer ({draft.angle})", **draft.model_dump(exclude={"angle"})), evidence)


def as_markdown(review: Review) -> str:
    rows = [f"| {f.severity} | {f.source} | {f.path}:{f.line} | {f.message} |" for f in review.findings]
    table = (
        ["", "| severity | source | place | finding |", "|---|---|---|---|", *rows] if rows else ["", "No findings."]
    )
    return "\n".join([review.summary or "(no summary)", *table])
