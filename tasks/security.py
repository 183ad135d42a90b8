"""The security auditor: STRIDE threats and the injection-vector map of the plan. Opinions; the tools' findings on the
diff are measured by `tasks.evidence` and are facts.
"""

from __future__ import annotations

from prefect import task
from pydantic import BaseModel, Field

from tasks import paper
from tasks.answers import ask_for
from tasks.asking import asker_for, chat
from tasks.context import SYSTEM
from tasks.models import Audit, Brief, Job, ModelRequest, Plan, Threat

PROMPT_VERSION = "auditor-1"

SMALL_INSTRUCTION = """\
You are the security auditor. Could hostile input reach the code of this ticket? Answer with one JSON object: \
{"threats": [at most one of {"category": one of the STRIDE words, "vector": where input enters, in a few words, \
"threat": what could go wrong, in a few words, "severity": "low|medium|high"}]}; an empty list when there is none."""

INSTRUCTION = """\
You are security auditor {number}. Look at this plan with STRIDE, {lens}. List only threats that the planned change \
itself brings or leaves open, each with the place where hostile input enters.

Plan: {plan}

Answer with one JSON object: {{"threats": [{{"category", "vector", "threat", "severity": "critical|high|medium|low"}}]}}; \
an empty list when there is none."""

LENSES = ("with an eye on injection and authorisation", "with an eye on secrets, dependencies and sandbox escape")


class Threats(BaseModel):
    threats: list[Threat] = Field(default=[], max_length=10)


@task(name="auditor", task_run_name="auditor {number}")
async def audit(job: Job, brief: Brief, plan: Plan, number: int) -> Audit:
    """One auditor's threats. An unusable answer is an audit without threats, said so on the sheet."""
    asker = asker_for(job, "auditor", PROMPT_VERSION, candidate=number)
    if job.tier == "small":
        instruction, limit = SMALL_INSTRUCTION, 120
    else:
        lens = LENSES[(number - 1) % len(LENSES)]
        instruction, limit = (
            INSTRUCTION.format(number=number, lens=lens, plan=plan.model_dump_json(exclude={"usage"})),
            1_500,
        )
    request = ModelRequest(messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=limit, seed=job.seed)
    answer, usage = await ask_for(Threats, asker, request, job.model)
    found = Audit(auditor=number, threats=tuple(answer.threats) if answer else (), usage=usage)
    await paper.leave(job, f"threats-{number}", _as_markdown(found, answered=answer is not None))
    return found


def _as_markdown(audit: Audit, *, answered: bool) -> str:
    if not answered:
        return "The auditor's answer could not be used."
    rows = [f"| {t.category} | {t.vector} | {t.threat} | {t.severity} |" for t in audit.threats]
    return (
        "\n".join(["| STRIDE | vector | threat | severity |", "|---|---|---|---|", *rows])
        if rows
        else "No threat named."
    )
