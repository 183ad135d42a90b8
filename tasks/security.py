"""The security auditors: STRIDE threats and ways of hostile input in the plan, and a second look at the diff. Opinions;
the tools' findings on the diff are measured by `tasks.evidence` and are facts.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from prefect import task
from pydantic import BaseModel, BeforeValidator, Field

from tasks import paper
from tasks.answers import ask_for
from tasks.asking import asker_for, chat
from tasks.context import SYSTEM, fenced
from tasks.measuring import DIFF_CHARS, anchored
from tasks.models import Audit, Brief, Candidate, Evidence, Finding, Job, ModelRequest, Plan, Severity, Threat, Vector
from tasks.paper import Signature
from tasks.seats import Seat, seat
from tasks.verification import verified_findings

PROMPT_VERSION = "auditor-2"

SMALL_INSTRUCTION = """\
You are the security auditor. Could hostile input reach the code of this ticket? Answer with one JSON object: \
{"threats": [at most one of {"category": one of the STRIDE words, "vector": where input enters, in a few words, \
"threat": what could go wrong, in a few words, "severity": "low|medium|high"}]}; an empty list when there is none."""

INSTRUCTION = """\
You are security auditor {number}. Look at this plan with STRIDE, {lens}. List only threats that the planned change \
itself brings or leaves open, and map how hostile input would travel: where it enters, what it reaches, what stands between.

Plan: {plan}

Answer with one JSON object: {{"threats": [{{"category": "{categories}", "vector": where input enters, "threat", \
"severity": "critical|high|medium|low"}}], "vectors": [{{"source", "sink", "guard"}}]}}; empty lists when there is none."""

DIFF_INSTRUCTION = """\
This change was made for the ticket:
{diff}

What the tools found new in it: {tools}

You are security auditor {number}. Look at the change {lens}. Point only at lines of the diff, and only at what someone \
could use; say how. Answer with one JSON object: {{"findings": [{{"severity": "critical|high|medium|low", "confidence": \
"high|medium|low", "cwe": "CWE-…", "path", "line", "message": what is wrong, how it is used and how it is mended}}]}}; an \
empty list when there is nothing."""

LENSES = (
    "with an eye on injection, authentication and authorisation",
    "with an eye on secrets, dependencies, files of continuous integration and escape from the sandbox",
)
CATEGORIES: tuple[str, ...] = get_args(Threat.model_fields["category"].annotation)


def _category(said: object) -> object:
    """`Information Disclosure` and `Elevation of privilege` are the table's words too."""
    words = "-".join(str(said).lower().split())
    return next((category for category in CATEGORIES if words.startswith(category)), said)


class Threats(BaseModel):
    threats: list[Threat] = Field(default=[], max_length=10)


class DraftThreat(BaseModel):
    category: Annotated[str, BeforeValidator(_category)]
    vector: str
    threat: str
    severity: Severity = "low"


class DraftAudit(BaseModel):
    """What a capable model is asked for about the plan."""

    threats: list[DraftThreat] = Field(default=[], max_length=10)
    vectors: list[Vector] = Field(default=[], max_length=10)


class DraftFinding(BaseModel):
    severity: Severity = "low"
    confidence: Literal["high", "medium", "low"] = "low"
    cwe: str = Field(default="", max_length=20)
    path: str = ""
    line: int = 0
    message: str


class DraftFindings(BaseModel):
    """What a capable model is asked for about the diff."""

    findings: list[DraftFinding] = Field(default=[], max_length=10)


@task(name="auditor", task_run_name="auditor {number}")
async def audit(job: Job, brief: Brief, plan: Plan, number: int) -> Audit:
    """One auditor's threats. An unusable answer is an audit without threats, said so on the sheet."""
    at = seat(job, "auditor", plan.effort)
    found, answered = await (
        _small_audit(job, brief, plan.effort, at, number)
        if at.tier == "small"
        else _full_audit(job, brief, plan, at, number)
    )
    await _leave(job, f"threats-{number}", found, at, 1, _as_markdown(found, answered=answered), answered=answered)
    return found


async def _small_audit(job: Job, brief: Brief, effort: int, at: Seat, number: int) -> tuple[Audit, bool]:
    asker = asker_for(job, "auditor", PROMPT_VERSION, candidate=number, effort=effort)
    answer, usage = await ask_for(Threats, asker, _request(job, brief, SMALL_INSTRUCTION, 120), at.model)
    return Audit(auditor=number, threats=tuple(answer.threats) if answer else (), usage=usage), answer is not None


async def _full_audit(job: Job, brief: Brief, plan: Plan, at: Seat, number: int) -> tuple[Audit, bool]:
    asker = asker_for(job, "auditor", PROMPT_VERSION, candidate=number, effort=plan.effort)
    instruction = INSTRUCTION.format(
        number=number,
        lens=_lens(number),
        plan=plan.model_dump_json(exclude={"usage", "rejection"}),
        categories="|".join(CATEGORIES),
    )
    answer, usage = await ask_for(DraftAudit, asker, _request(job, brief, instruction, 1_500), at.model)
    if answer is None:
        return Audit(auditor=number, usage=usage), False
    named = tuple(Threat.model_validate(t.model_dump()) for t in answer.threats if t.category in CATEGORIES)
    return Audit(auditor=number, threats=named, vectors=tuple(answer.vectors), usage=usage), True


@task(name="auditor, second look", task_run_name="auditor {number}.{round} on the diff")
async def audit_diff(
    job: Job, brief: Brief, plan: Plan, candidate: Candidate, evidence: Evidence, number: int, round: int
) -> Audit:
    """One auditor's findings on the change itself. Those outside its lines lose their severity."""
    at = seat(job, "auditor", plan.effort)
    asker = asker_for(job, "auditor", PROMPT_VERSION, candidate=number, round=round, effort=plan.effort)
    tools = "; ".join(f"{f.severity} {f.message} ({f.path}:{f.line})" for f in evidence.findings if f.new)
    instruction = DIFF_INSTRUCTION.format(
        diff=fenced(evidence.diff[:DIFF_CHARS], brief.nonce),
        tools=fenced(tools, brief.nonce) if tools else "nothing",
        number=number,
        lens=_lens(number),
    )
    answer, usage = await ask_for(DraftFindings, asker, _request(job, brief, instruction, 1_500), at.model)
    findings = tuple(anchored(_finding(draft, number), evidence) for draft in answer.findings) if answer else ()
    findings = await verified_findings(job, brief, asker, findings)
    found, answered = Audit(auditor=number, findings=findings, usage=usage), answer is not None
    sheet = _findings_as_markdown(found, answered=answered)
    await _leave(job, f"security-{number}-{round}", found, at, round, sheet, answered=answered)
    return found


def _lens(number: int) -> str:
    return LENSES[(number - 1) % len(LENSES)]


def _finding(draft: DraftFinding, number: int) -> Finding:
    return Finding(source=f"auditor {number}", **draft.model_dump())


def _request(job: Job, brief: Brief, instruction: str, max_tokens: int) -> ModelRequest:
    return ModelRequest(messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=max_tokens, seed=job.seed)


async def _leave(job: Job, kind: str, found: Audit, at: Seat, round: int, sheet: str, *, answered: bool) -> None:
    signed = Signature(
        role="auditor", index=found.auditor, round=round, model=at.model, prompt_version=PROMPT_VERSION,
        status="success" if answered else "fail", usage=found.usage,
    )  # fmt: skip
    await paper.leave_sheet(job, kind, signed, sheet, found)


_UNUSABLE = "The auditor's answer could not be used."


def _as_markdown(audit: Audit, *, answered: bool) -> str:
    if not answered:
        return _UNUSABLE
    threats = [f"| {t.category} | {t.vector} | {t.threat} | {t.severity} |" for t in audit.threats]
    vectors = [f"| {v.source} | {v.sink} | {v.guard or 'nothing'} |" for v in audit.vectors]
    return "\n".join([
        *(["| STRIDE | vector | threat | severity |", "|---|---|---|---|", *threats] if threats else ["No threat named."]),
        *(["", "| hostile input enters by | reaches | what stands between |", "|---|---|---|", *vectors] if vectors else []),
    ])  # fmt: skip


def _findings_as_markdown(audit: Audit, *, answered: bool) -> str:
    if not answered:
        return _UNUSABLE
    rows = [f"| {f.severity} | {f.confidence} | {f.cwe} | {f.path}:{f.line} | {f.message} |" for f in audit.findings]
    head = ["| severity | confidence | weakness | place | finding |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else "Nothing found in the diff."
