"""The architect: turns the brief into the plan that every later role works from, never from another role's chat."""

from __future__ import annotations

from typing import Literal

from prefect import task
from pydantic import BaseModel, Field

from tasks import paper
from tasks.answers import ask_for, required
from tasks.asking import Asker, asker_for, chat
from tasks.context import SYSTEM
from tasks.models import Brief, Job, ModelRequest, Plan, Tier, WorkUnit

PROMPT_VERSION = "architect-1"

SMALL_INSTRUCTION = """\
Plan the fix of this ticket. Answer with one JSON object: {"summary": one sentence on what is wrong and where, \
"effort": 1 to 5, "edge_cases": at most two short inputs to think of, "acceptance": at most two short checks}."""

INSTRUCTION = """\
You are the architect. Plan the work on this ticket; others will write code and tests from your plan alone. Name only \
files and symbols that exist or that the plan creates. Split into at most {units} self-contained work units with \
disjoint files; use one unit unless the parts are truly independent. Effort is 1 (trivial) to 5 (large). Answer with \
one JSON object: {{"summary", "effort", "risk": "low|medium|high", "components": [], "data_models": [], \
"api_surface": [], "file_layout": [], "edge_cases": [], "acceptance": [checkable sentences], "units": [{{"id", "title", \
"description", "files": [], "depends_on": []}}]}}."""

MAX_UNITS = 8


class SmallPlan(BaseModel):
    """What a small model is asked for; the rest of its plan is made by rule."""

    summary: str = Field(max_length=300)
    effort: int = 1
    edge_cases: list[str] = Field(default=[], max_length=2)
    acceptance: list[str] = Field(default=[], max_length=2)


class DraftUnit(BaseModel):
    id: str
    title: str
    description: str = ""
    files: list[str] = []
    depends_on: list[str] = []


class DraftPlan(SmallPlan):
    """What a capable model is asked for."""

    summary: str
    risk: Literal["low", "medium", "high"] = "low"
    components: list[str] = []
    data_models: list[str] = []
    api_surface: list[str] = []
    file_layout: list[str] = []
    edge_cases: list[str] = []
    acceptance: list[str] = []
    units: list[DraftUnit] = Field(min_length=1)


def crew(effort: int, tier: Tier) -> tuple[int, int, int]:
    """How many coders, testers and auditors an effort gets, up to 3, 3 and 2 (T10). A small model gets one of each:
    more of the same weak opinion costs time and decides nothing; its coder samples instead.
    """
    if tier == "small" or effort <= 1:
        return 1, 1, 1
    return {2: (1, 1, 1), 3: (2, 2, 1), 4: (3, 2, 2)}.get(effort, (3, 3, 2))


@task(name="architect", task_run_name="architect")
async def make_plan(job: Job, brief: Brief) -> Plan:
    """One plan. A small model's unusable answer is replaced by the ticket itself; a capable one's ends the attempt."""
    asker = asker_for(job, "architect", PROMPT_VERSION)
    plan = await (_small_plan(job, brief, asker) if job.tier == "small" else _full_plan(job, brief, asker))
    await paper.leave(job, "plan", _as_markdown(plan))
    return plan


async def _small_plan(job: Job, brief: Brief, asker: Asker) -> Plan:
    draft, usage = await ask_for(SmallPlan, asker, _request(brief, SMALL_INSTRUCTION, 220, job), job.model)
    draft = draft or SmallPlan(summary=job.ticket.title)
    files = tuple(dict.fromkeys(e.path for e in brief.excerpts))
    return Plan(
        summary=draft.summary,
        effort=min(max(draft.effort, 1), 2),
        edge_cases=tuple(draft.edge_cases),
        acceptance=tuple(draft.acceptance),
        units=(WorkUnit(id="u1", title=job.ticket.title, files=files),),
        usage=usage,
    )


async def _full_plan(job: Job, brief: Brief, asker: Asker) -> Plan:
    request = _request(brief, INSTRUCTION.format(units=MAX_UNITS), 3_000, job)
    answer, usage = await ask_for(DraftPlan, asker, request, job.model)
    draft = required(answer, "architect")
    units = tuple(WorkUnit.model_validate(u.model_dump()) for u in {u.id: u for u in draft.units[:MAX_UNITS]}.values())
    fields = draft.model_dump(exclude={"units", "effort"})
    return Plan(**fields, effort=min(max(draft.effort, 1), 5), units=in_order(units), usage=usage)


def in_order(units: tuple[WorkUnit, ...]) -> tuple[WorkUnit, ...]:
    """The units so that each comes after those it depends on; unknown and circular dependencies are dropped."""
    known = {u.id for u in units}
    waiting = [u.model_copy(update={"depends_on": tuple(d for d in u.depends_on if d in known)}) for u in units]
    done: list[WorkUnit] = []
    while waiting:
        finished = {unit.id for unit in done}
        place = next((n for n, u in enumerate(waiting) if set(u.depends_on) <= finished), None)
        ready = waiting[place] if place is not None else waiting[0].model_copy(update={"depends_on": ()})
        place = place or 0
        waiting = [u for n, u in enumerate(waiting) if n != place]
        done.append(ready)
    return tuple(done)


def _request(brief: Brief, instruction: str, max_tokens: int, job: Job) -> ModelRequest:
    return ModelRequest(messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=max_tokens, seed=job.seed)


def _as_markdown(plan: Plan) -> str:
    lines = [plan.summary, "", f"Effort {plan.effort}, risk {plan.risk}."]
    for title in ("acceptance", "edge_cases", "components", "data_models", "api_surface", "file_layout"):
        values = getattr(plan, title)
        lines += [f"\n**{title.replace('_', ' ').capitalize()}**", *(f"- {v}" for v in values)] if values else []
    lines += ["\n| unit | title | files | after |", "|---|---|---|---|"]
    lines += [f"| {u.id} | {u.title} | {', '.join(u.files)} | {', '.join(u.depends_on)} |" for u in plan.units]
    return "\n".join(lines)
