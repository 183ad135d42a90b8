"""The judge: ACCEPT, REVISE or REJECT. Rules over evidence decide; a model's opinion can only make it stricter.

With a small model the opinion is advice and changes nothing: a 1.5B rejects correct fixes with confidence
(notes/llm.md). A capable model may turn ACCEPT into REVISE. Nothing turns failing evidence into ACCEPT.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from prefect import task
from pydantic import BaseModel, field_validator

from tasks import paper, services
from tasks.answers import ask_for
from tasks.asking import asker_for, chat
from tasks.context import SYSTEM, fenced
from tasks.measuring import DIFF_CHARS, SMALL_DIFF_CHARS, facts, objections
from tasks.models import Audit, Brief, Candidate, Evidence, Finding, Job, ModelRequest, Plan, Review, Usage, Verdict
from tasks.paper import Signature
from tasks.seats import Seat, seat

PROMPT_VERSION = "judge-2"

INSTRUCTION = """\
This change was made for the ticket:
{diff}

What the factory measured: {facts}
{review}
You are the judge. Does the change do what the ticket asks, for every input, without harm? Answer with one JSON object: \
{{"decision": "ACCEPT|REVISE", "reasons": [at most {reasons} short sentences], "must_fix": [only for REVISE: what has to \
change]}}."""

ACCEPTANCE = "\nThe plan's acceptance checks: {acceptance}\n"


class Opinion(BaseModel):
    decision: Literal["ACCEPT", "REVISE", "REJECT"] = "REVISE"
    reasons: list[str] = []
    must_fix: list[str] = []

    @field_validator("decision", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.strip().upper() if isinstance(value, str) else value


def decide(
    evidence: Evidence, candidate: Candidate, opinion: Opinion | None, *, capable: bool, last_round: bool
) -> Verdict:
    """The rule. `opinion` is None when it could not be had; it is heard only from a capable model."""
    against = objections(evidence, candidate)
    advice = f"{opinion.decision}: {' '.join(opinion.reasons[:5])}".strip() if opinion else "no usable opinion"
    if against:
        decision: Literal["REVISE", "REJECT"] = "REJECT" if last_round else "REVISE"
        return Verdict(decision=decision, reasons=against, must_fix=against, advice=advice)
    if capable and opinion and opinion.decision != "ACCEPT" and opinion.must_fix and not last_round:
        return Verdict(decision="REVISE", reasons=tuple(opinion.reasons[:5]), must_fix=tuple(opinion.must_fix[:5]),
                       advice=advice, decided_by="model")  # fmt: skip
    proof = f"{evidence.proof}; nothing that passed fails."
    return Verdict(decision="ACCEPT", reasons=(proof,), advice=advice)


@task(name="judge", task_run_name="judge {round}")
async def judge(
    job: Job,
    brief: Brief,
    plan: Plan,
    candidate: Candidate,
    evidence: Evidence,
    review: Review,
    audits: tuple[Audit, ...],
    round: int,
) -> Verdict:
    """The verdict of one round, written to the ledger. A change that evidence already refuses costs no opinion.

    `audits` are those of the diff. The model is told neither who wrote the change nor who found what.
    """
    at, last = seat(job, "judge", plan.effort), round >= job.max_rounds
    opinion, usage = None, Usage()
    refused = bool(objections(evidence, candidate))
    if not refused:
        findings = distinct([*review.findings, *(f for audit in audits for f in audit.findings)])
        opinion, usage = await _opinion(job, brief, plan, evidence, findings, at, candidate.number, round)
    verdict = decide(evidence, candidate, opinion, capable=at.tier == "capable", last_round=last)
    verdict = verdict.model_copy(update={"usage": usage})
    services.ledger(job.ticket.board).record_verdict(job.attempt_id, round, candidate.head_sha, verdict.decision, verdict.reasons,
                                     evidence.model_dump(mode="json", exclude={"diff"}))  # fmt: skip
    signed = Signature(role="judge", round=round, model=at.model, prompt_version=PROMPT_VERSION, usage=usage,
                       status="skipped" if refused else "success" if opinion else "fail")  # fmt: skip
    await paper.leave_sheet(job, f"verdict-{round}", signed, as_markdown(verdict), verdict)
    return verdict


def distinct(findings: Iterable[Finding]) -> list[Finding]:
    """Each place and message once, however many roles point at it, the most severe first."""
    kept: dict[tuple[str, int, str], Finding] = {}
    for finding in sorted(findings, key=lambda f: ("critical", "high", "medium", "low").index(f.severity)):
        kept.setdefault((finding.path, finding.line, " ".join(finding.message.lower().split())), finding)
    return list(kept.values())


async def _opinion(
    job: Job, brief: Brief, plan: Plan, evidence: Evidence, findings: list[Finding], at: Seat, number: int, round: int
) -> tuple[Opinion | None, Usage]:
    asker = asker_for(job, "judge", PROMPT_VERSION, candidate=number, round=round, effort=plan.effort)
    small = at.tier == "small"
    pointed_at = "\n".join(f"- {f.severity}: {f.message} ({f.path}:{f.line})" for f in findings)
    told = f"Those who read it found:\n{fenced(pointed_at, brief.nonce)}\n" if findings else ""
    told += ACCEPTANCE.format(acceptance="; ".join(plan.acceptance)) if plan.acceptance and not small else ""
    instruction = INSTRUCTION.format(
        diff=fenced(evidence.diff[: SMALL_DIFF_CHARS if small else DIFF_CHARS], brief.nonce),
        facts=facts(evidence),
        review=told,
        reasons=1 if small else 3,
    )
    request = ModelRequest(
        messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=100 if small else 1_000, seed=job.seed
    )
    return await ask_for(Opinion, asker, request, at.model)


def as_markdown(verdict: Verdict) -> str:
    fixes = ["", "To fix:", *(f"- {f}" for f in verdict.must_fix)] if verdict.must_fix else []
    reasons = [f"- {r}" for r in verdict.reasons]
    return "\n".join(
        [
            f"**{verdict.decision}** (decided by {verdict.decided_by})",
            "",
            *reasons,
            *fixes,
            "",
            f"Model's advice: {verdict.advice}",
        ]
    )
