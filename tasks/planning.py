"""The architect: turns the brief into the plan that every later role works from, never from another role's chat.

A capable architect may say that there is nothing to code, and names files and symbols. Both are looked up: what cannot be
shown is asked about once and then not believed. Where the ticket can be read in two ways that matter, it may ask people.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Literal

from prefect import task
from pydantic import BaseModel, Field, model_validator

from infra.errors import InvalidOutput, NeedsHuman
from infra.git import Mirror
from tasks import paper, services
from tasks.answers import ask_for, parse, required
from tasks.asking import Asker, ask, asker_for, chat
from tasks.context import SYSTEM, source_files
from tasks.layout import LEAST_EFFORT, layout_mistakes
from tasks.models import Brief, Job, Message, ModelRequest, Plan, Rejection, Usage, Verdict, WorkUnit
from tasks.paper import Signature
from tasks.questions import may_ask
from tasks.seats import Seat, seat
from tasks.verification import verified_text, vetted_question

PROMPT_VERSION = "architect-3"

SMALL_INSTRUCTION = """\
Plan the fix of this ticket. Answer with one JSON object: {"summary": one sentence on what is wrong and where, \
"effort": 1 to 5, "edge_cases": at most two short inputs to think of, "acceptance": at most two short checks}."""

INSTRUCTION = """\
You are the architect. Plan the work on this ticket; others will write code and tests from your plan alone. Name only \
files and symbols that exist; paths and names that the plan makes anew stand in "creates" too. Split into at most {units} \
self-contained work units with disjoint files; use one unit unless the parts are truly independent. Effort is 1 \
(trivial) to 5 (large). Answer with one JSON object: {{"summary", "effort", "risk": "low|medium|high", "components": [], \
"data_models": [], "api_surface": [], "file_layout": [paths], "creates": [], "edge_cases": [], "acceptance": [checkable \
sentences], "units": [{{"id", "title", "description", "files": [], "symbols": [functions and classes it changes], \
"depends_on": []}}]}}.
Only when nothing should be coded, answer with {{"summary", "rejection": {{"kind": "already_done|blocked_by|unactionable", \
"reason", "ticket": key of the ticket that comes first, "proofs": [{{"commit", "path", "line", "quote": that line word \
for word}}]}}}}. Proofs are looked up: the line of a file that shows it, and the commit that did it where you know one."""

ASK_RULE = """
Only when the ticket can be read in ways that make different code, nothing here tells which is meant, and a wrong guess \
would do harm, answer with {"summary", "question": one question to the people of the ticket}. They may take days: else \
take the most usual reading and plan it."""

APPLICATION_INSTRUCTION = """\
You are the architect. The ticket is the specification of a whole application. Plan all of it; others write tests and code \
from your plan alone, at the same time, and do not see each other's work. So `api_surface` names every function, class, \
command and endpoint that another file or a test uses, each as `path: full signature: what it takes, returns and raises`; \
`data_models` every shape that crosses a file, field by field; `file_layout` every file, as `path: what it is for`; \
`creates` the paths of the new ones; `acceptance` a checkable sentence for each thing that the specification asks for, with \
inputs and expected values. Use only what the repository's rules allow. Split into at most {units} work units: every new \
file belongs to exactly one, units that others build on come first by `depends_on`, and the fewer depend on each other the \
better. No tests and no settings of tests: testers write them. Effort is 3 (small application) to 5 (large). Answer with one \
JSON object: {{"summary", "effort", "risk": "low|medium|high", "components": [], "data_models": [], "api_surface": [], \
"file_layout": [], "creates": [], "edge_cases": [], "acceptance": [], "units": [{{"id", "title", "description", \
"files": [], "depends_on": []}}]}}."""

REPAIR = "Parts of your answer were looked up and are not so:\n{mistakes}\nAnswer again with the whole JSON object, corrected."

NOT_ASKED = "Nobody can be asked: plan the most usual reading."
MAX_UNITS = 8
PLAN_TOKENS, APPLICATION_TOKENS = 3_000, 8_000
LINES_OFF = 3
"""How far from the line that it names a quote may stand."""
QUOTE_CHARS = 12
"""Shorter quotes, not counting spaces, stand everywhere."""


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
    symbols: list[str] = []
    depends_on: list[str] = []


class Proof(BaseModel):
    """A line of a file of the base commit, or a commit that the base contains."""

    commit: str = ""
    path: str = ""
    line: int = 0
    quote: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return ", ".join(filter(None, [f"commit {self.commit}" if self.commit else "", place]))


class DraftRejection(BaseModel):
    kind: Literal["already_done", "blocked_by", "unactionable"]
    reason: str = Field(min_length=1, max_length=600)
    ticket: str = ""
    proofs: list[Proof] = Field(default=[], max_length=5)


class DraftPlan(SmallPlan):
    """What a capable model is asked for."""

    summary: str
    risk: Literal["low", "medium", "high"] = "low"
    components: list[str] = []
    data_models: list[str] = []
    api_surface: list[str] = []
    file_layout: list[str] = []
    creates: list[str] = []
    edge_cases: list[str] = []
    acceptance: list[str] = []
    units: list[DraftUnit] = []
    rejection: DraftRejection | None = None
    question: str = Field(default="", max_length=2_000)

    @model_validator(mode="after")
    def _says_what_to_do(self) -> DraftPlan:
        if not (self.units or self.rejection or self.question.strip()):
            raise ValueError("a plan needs at least one unit, a rejection, or a question")
        return self

    @property
    def asks(self) -> bool:
        """It says nothing but its question; one beside units or a rejection is not heard."""
        return not self.units and self.rejection is None


@task(name="architect", task_run_name="architect")
async def make_plan(job: Job, brief: Brief) -> Plan:
    """One plan. A small model's unusable answer is replaced by the ticket itself; a capable one's ends the attempt.

    Raises NeedsHuman when a capable one asks what only people can say (I12).
    """
    at = seat(job, "architect")
    asker = asker_for(job, "architect", PROMPT_VERSION)
    plan = await (_small_plan(job, brief, asker, at) if at.tier == "small" else _full_plan(job, brief, asker, at))
    summary = await verified_text(job, brief, asker, plan.summary)
    plan = plan.model_copy(update={"summary": summary or job.ticket.title})
    signed = Signature(role="architect", model=at.model, prompt_version=PROMPT_VERSION, usage=plan.usage)
    await paper.leave_sheet(job, "plan", signed, _as_markdown(plan), plan)
    return plan


@task(name="turn down", task_run_name="turn down")
async def turn_down(job: Job, rejection: Rejection) -> Verdict:
    """The verdict on a ticket that the architect showed to need no code, written to the ledger as round 0."""
    verdict = as_verdict(rejection)
    services.ledger(job.ticket.board).record_verdict(
        job.attempt_id, 0, job.repository.base_sha, verdict.decision, verdict.reasons, {}
    )
    return verdict


_WORDS = {
    "already_done": "Nothing to do: this is done already.",
    "blocked_by": "Another ticket comes first.",
    "unactionable": "This cannot be done by changing the code.",
}


def as_verdict(rejection: Rejection) -> Verdict:
    """REJECT with the architect's reason and what was looked up."""
    shown = f"Looked up: {', '.join(rejection.proofs)}."
    return Verdict(
        decision="REJECT", reasons=(_WORDS[rejection.kind], f"The architect says: {rejection.reason}", shown)
    )


async def _small_plan(job: Job, brief: Brief, asker: Asker, at: Seat) -> Plan:
    draft, usage = await ask_for(SmallPlan, asker, _request(brief, SMALL_INSTRUCTION, 220, job), at.model)
    draft = draft or SmallPlan(summary=job.ticket.title)
    return Plan(
        summary=draft.summary,
        effort=min(max(draft.effort, 1), 2),
        edge_cases=tuple(draft.edge_cases),
        acceptance=tuple(draft.acceptance),
        units=(_whole_ticket(job, brief),),
        usage=usage,
    )


def _whole_ticket(job: Job, brief: Brief) -> WorkUnit:
    return WorkUnit(id="u1", title=job.ticket.title, files=tuple(dict.fromkeys(e.path for e in brief.excerpts)))


async def _full_plan(job: Job, brief: Brief, asker: Asker, at: Seat) -> Plan:
    whole = job.greenfield is not None
    told, most = (APPLICATION_INSTRUCTION, APPLICATION_TOKENS) if whole else (INSTRUCTION, PLAN_TOKENS)
    rule = ASK_RULE if _may_ask(job) else ""
    request = _request(brief, told.format(units=MAX_UNITS) + rule, most, job)
    answer, usage = await ask_for(DraftPlan, asker, request, at.model)
    draft = required(answer, "architect")
    wrong = await _mistakes(job, brief, asker, draft)
    if wrong:
        better, more = await _repaired(asker, request, draft, wrong, at)
        usage += more
        draft = better or draft
        wrong = await _mistakes(job, brief, asker, draft)
    if wrong and whole:
        raise InvalidOutput(f"the architect's plan of the application does not hold together: {' '.join(wrong[:3])}")
    return await asyncio.to_thread(_settled, job, brief, draft, wrong, usage)


def _may_ask(job: Job) -> bool:
    """A specification is planned as it stands: its author waits at the command line."""
    return job.greenfield is None and may_ask(job.claim)


async def _mistakes(job: Job, brief: Brief, asker: Asker, draft: DraftPlan) -> list[str]:
    """What is wrong with the draft, one sentence each. Raises NeedsHuman for a question that may be asked."""
    if not draft.asks:
        return await asyncio.to_thread(layout_mistakes if job.greenfield else mistakes, brief, draft)
    if not _may_ask(job):
        return [NOT_ASKED]
    try:
        question = await vetted_question(job, brief, asker, draft.question.strip())
    except InvalidOutput as refused:
        return [str(refused)]
    raise NeedsHuman(question)


async def _repaired(
    asker: Asker, request: ModelRequest, draft: DraftPlan, wrong: Sequence[str], at: Seat
) -> tuple[DraftPlan | None, Usage]:
    """The one more call that a plan with mistakes gets."""
    said = Message(role="assistant", content=draft.model_dump_json(exclude_defaults=True))
    complaint = Message(role="user", content=REPAIR.format(mistakes="\n".join(f"- {each}" for each in wrong)))
    again = request.model_copy(
        update={"messages": (*request.messages, said, complaint), "json_schema": DraftPlan.model_json_schema()}
    )
    completion = await ask(asker.model_copy(update={"sample": asker.sample + 2}), again, at.model)
    return parse(completion.text, DraftPlan), completion.usage


def _settled(job: Job, brief: Brief, draft: DraftPlan, wrong: Sequence[str], usage: Usage) -> Plan:
    """The plan as the others get it: a rejection only where it was shown, files only where they are or will be."""
    effort = min(max(draft.effort, LEAST_EFFORT if job.greenfield else 1), 5)
    if draft.rejection is not None and not wrong:
        return Plan(summary=draft.summary, effort=effort, units=(), usage=usage, rejection=_shown(draft.rejection))
    known = set(_mirror(brief).paths(brief.repository.base_sha)) | set(draft.creates)
    units = disjoint(numbered(draft.units[:MAX_UNITS]))
    units = tuple(u.model_copy(update={"files": tuple(f for f in u.files if f in known)}) for u in units)
    fields = draft.model_dump(exclude={"units", "effort", "rejection", "question"})
    return Plan(**fields, effort=effort, units=in_order(units) or (_whole_ticket(job, brief),), usage=usage)


def _shown(draft: DraftRejection) -> Rejection:
    proofs = [*([f"ticket {draft.ticket}"] if draft.kind == "blocked_by" else []), *map(str, draft.proofs)]
    return Rejection(kind=draft.kind, reason=draft.reason, proofs=tuple(proofs))


# ---- looking up what a plan names -------------------------------------------------------------------------------


def mistakes(brief: Brief, draft: DraftPlan) -> list[str]:
    """What the plan names and the base commit does not have, one sentence each. Blocks: git, and the board."""
    if draft.rejection is not None:
        return unproved(brief, draft.rejection)
    mirror, sha = _mirror(brief), brief.repository.base_sha
    paths = set(mirror.paths(sha))
    return [*_unknown_files(draft, paths), *_unknown_symbols(draft, _identifiers(mirror, sha, paths))]


def _unknown_files(draft: DraftPlan, paths: set[str]) -> list[str]:
    new = {path for path in draft.creates if _may_be_made(path)}
    named = [file for unit in draft.units for file in unit.files]
    named += [file for entry in draft.file_layout if "/" in (file := _first_word(entry))]
    return [
        f"There is no file {file!r}, and `creates` does not name it."
        for file in dict.fromkeys(named)
        if file not in paths | new and not any(path.startswith(f"{file.rstrip('/')}/") for path in paths)
    ]


def _unknown_symbols(draft: DraftPlan, known: set[str]) -> list[str]:
    new = set(map(_last_name, draft.creates))
    named = dict.fromkeys(symbol for unit in draft.units for symbol in unit.symbols)
    return [
        f"Nothing in the code is called {symbol!r}, and `creates` does not name it."
        for symbol in named
        if _last_name(symbol) not in known | new
    ]


def _first_word(entry: str) -> str:
    return re.split(r"[\s:]", entry.strip(), maxsplit=1)[0].strip("`")


def _last_name(symbol: str) -> str:
    """`total` of `shop/prices.py::Basket.total(prices)`."""
    names: list[str] = re.findall(r"[^\W\d]\w*", symbol.partition("(")[0])
    return names[-1] if names else symbol


def _may_be_made(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/")


def _identifiers(mirror: Mirror, sha: str, paths: set[str]) -> set[str]:
    texts = mirror.read_all(sha, source_files(sorted(paths))).values()
    return {name for raw in texts for name in re.findall(r"[^\W\d]\w*", raw.decode(errors="replace"))}


def unproved(brief: Brief, rejection: DraftRejection) -> list[str]:
    """Why the rejection is not believed, one sentence each; empty when all it claims was found. Blocks."""
    if rejection.kind == "blocked_by":
        return _not_blocking(brief, rejection.ticket)
    if brief.ticket_tests is not None and brief.ticket_tests.red:
        return [f"The ticket's own example fails today: {brief.ticket_tests.red[0]}. There is work to do."]
    if not any(_squeezed(proof.quote) for proof in rejection.proofs):
        return ["The rejection has no proof: name a file, a line, and the words that stand there."]
    return [why for proof in rejection.proofs if (why := _not_shown(brief, proof))]


def _not_blocking(brief: Brief, key: str) -> list[str]:
    found = services.board(brief.ticket.board).tickets_by_keys([key]) if key else []
    if not found or key == brief.ticket.key:
        return [f"There is no other ticket {key!r} on the board."]
    return [f"The ticket {key!r} is closed, so it blocks nothing."] if found[0].closed else []


def _not_shown(brief: Brief, proof: Proof) -> str | None:
    mirror, sha = _mirror(brief), brief.repository.base_sha
    if proof.commit and not _is_part_of(mirror, sha, proof.commit):
        return f"The commit {proof.commit!r} is not part of the base branch."
    if (proof.path or proof.quote) and not _stands_there(mirror.read_all(sha, [proof.path]).get(proof.path), proof):
        return f"What is quoted does not stand in {proof.path!r} at line {proof.line}."
    return None


def _is_part_of(mirror: Mirror, sha: str, commit: str) -> bool:
    named = re.fullmatch(r"[0-9a-f]{7,40}", commit) is not None
    return named and (mirror.merge_base(sha, commit) or "").startswith(commit)


def _stands_there(raw: bytes | None, proof: Proof) -> bool:
    """Whether the quoted words stand at the line, or within `LINES_OFF` of it; line 0: anywhere. Spaces do not count."""
    if raw is None:
        return False
    lines = raw.decode(errors="replace").splitlines()
    first, last = (proof.line - 1 - LINES_OFF, proof.line + LINES_OFF) if proof.line else (0, len(lines))
    words, near = _squeezed(proof.quote), _squeezed("".join(lines[max(first, 0) : last]))
    return 0 <= proof.line <= len(lines) and len(words) >= QUOTE_CHARS and words in near


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _mirror(brief: Brief) -> Mirror:
    return services.mirror(brief.repository)


# ---- units ------------------------------------------------------------------------------------------------------


def numbered(drafts: Sequence[DraftUnit]) -> tuple[WorkUnit, ...]:
    """The units as u1, u2 …: their names go into paths. Of two with one id, dependencies mean the first."""
    names: dict[str, str] = {}
    for place, draft in enumerate(drafts, 1):
        names.setdefault(draft.id, f"u{place}")
    return tuple(
        WorkUnit(
            id=f"u{place}",
            title=draft.title,
            description=draft.description,
            files=tuple(dict.fromkeys(draft.files)),
            symbols=tuple(draft.symbols),
            depends_on=tuple(names[d] for d in draft.depends_on if d in names),
        )
        for place, draft in enumerate(drafts, 1)
    )


def disjoint(units: Sequence[WorkUnit]) -> tuple[WorkUnit, ...]:
    """The units with those that share a file made one, so that files can be locks. The first one's id stays."""
    groups: list[list[WorkUnit]] = []
    for unit in units:
        touching = [g for g in groups if any(set(unit.files) & set(other.files) for other in g)]
        groups = [g for g in groups if g not in touching] + [[*(u for g in touching for u in g), unit]]
    groups = sorted((sorted(g, key=units.index) for g in groups), key=lambda g: units.index(g[0]))
    names = {unit.id: group[0].id for group in groups for unit in group}
    return tuple(_joined(group, names) for group in groups)


def _joined(group: Sequence[WorkUnit], names: dict[str, str]) -> WorkUnit:
    own = group[0].id
    return WorkUnit(
        id=own,
        title=" and ".join(u.title for u in group),
        description="\n".join(u.description for u in group if u.description),
        files=tuple(dict.fromkeys(f for u in group for f in u.files)),
        symbols=tuple(dict.fromkeys(s for u in group for s in u.symbols)),
        depends_on=tuple(dict.fromkeys(n for u in group for d in u.depends_on if (n := names.get(d, d)) != own)),
    )


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


def mending(plan: Plan) -> tuple[WorkUnit, ...]:
    """The work of a later round as one unit: what has to be mended may lie between the units."""
    if len(plan.units) == 1:
        return plan.units
    files = tuple(dict.fromkeys(f for u in plan.units for f in u.files))
    return (WorkUnit(id="mend", title=plan.summary, description="All units are in the checkout.", files=files),)


def _request(brief: Brief, instruction: str, max_tokens: int, job: Job) -> ModelRequest:
    return ModelRequest(messages=chat(brief.prefix, SYSTEM, instruction), max_tokens=max_tokens, seed=job.seed)


def _as_markdown(plan: Plan) -> str:
    lines = [plan.summary, "", f"Effort {plan.effort}, risk {plan.risk}."]
    if plan.rejection is not None:
        return "\n".join([*lines, "", "Nothing is coded:", *(f"- {r}" for r in as_verdict(plan.rejection).reasons)])
    for title in ("acceptance", "edge_cases", "components", "data_models", "api_surface", "file_layout", "creates"):
        values = getattr(plan, title)
        lines += [f"\n**{title.replace('_', ' ').capitalize()}**", *(f"- {v}" for v in values)] if values else []
    lines += ["\n| unit | title | files | after |", "|---|---|---|---|"]
    lines += [f"| {u.id} | {u.title} | {', '.join(u.files)} | {', '.join(u.depends_on)} |" for u in plan.units]
    return "\n".join(lines)
