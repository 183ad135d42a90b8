"""The coder: changes the code so that the ticket's behaviour comes true. Two ways behind one interface.

Small models get no tools: they see the code, say in one or two sentences what is wrong and write the corrected
function, which is spliced in by syntax tree; tests decide, and a failure means a fresh sample. Capable models work
with tools in a worktree (`tasks.agent`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

import pydantic_core
from prefect import task
from pydantic import Field

from infra.code_index import CodeIndex
from infra.git import Mirror
from infra.mutants import Mutant, mutants
from infra.mutation_runs import executed_lines, green_mutants
from infra.syntax import functions, parses, splice
from infra.test_runners import is_test_path
from tasks import progress, services
from tasks.actions import code_on_runner
from tasks.agent import AgentEvent, AgentLimits, Toolbox, run_agent
from tasks.agents import agent_edit, coder_agent
from tasks.answers import code_blocks, continued
from tasks.asking import Asker, RecordedModel, ask, asker_for, chat
from tasks.code_search import likely_paths
from tasks.context import SYSTEM, advised, fenced, language, rank_functions, source_files
from tasks.edits import coder_checkout, coders_tests, edited_files, laid_files
from tasks.evidence import run_tests
from tasks.grants import grant_for, note_grant
from tasks.hooks import prepared
from tasks.memory import is_on, recall_more
from tasks.models import (
    Brief,
    Change,
    Ending,
    Feedback,
    Frozen,
    Hooks,
    Job,
    Message,
    ModelRequest,
    Plan,
    TestChange,
    TestReport,
    Usage,
    WorkUnit,
)
from tasks.seats import seat
from tasks.verification import ConfigClaim, verified_change, vetted_question

PROMPT_VERSION = "coder-1"
TEMPERATURES = (0.2, 0.6, 0.8, 0.7, 0.9)
"""One per sample; rising temperature beat feeding the failure back (notes/llm.md)."""
SPREAD = (0.0, 0.5, 0.8)
"""Temperature of each candidate of a capable model: three of the same would be one."""
SAMPLE_TOKENS = 900
MAX_EDITS = 600
EDITS_WANTED = 3
EDIT_SEARCH_SECONDS = 45.0
"""Bounds of the search for small edits: edits tried, finds that end it, and time."""

BLAME = (
    "Find the bug. It is probably in one of {suspects}. Say in one or two sentences which line is wrong and why. Then "
    "write that whole function again, corrected, in one ```{language} block. No other text.",
    "The bug is in",
)
CONTRAST = (
    "Fix the ticket. The mistake is probably in one of {suspects}. Write one sentence that says what that function does "
    "wrong and one that says what it should do instead. Then write that one function again, corrected, in one "
    "```{language} block. No other text.",
    "The function must not",
)
ANGLES = (BLAME, BLAME, CONTRAST, BLAME, CONTRAST)
"""What each sample is asked and how its answer begins: left to itself a small model criticises everything in sight.
Two ways of asking make samples that differ."""
SUSPECTS = 4
TEST_CHARS = 1_200


def angle(sample: int) -> tuple[str, str]:
    """Instruction and first words for a sample (counted from 1)."""
    return ANGLES[(sample - 1) % len(ANGLES)]


def light_instruction(brief: Brief, sample: int = 1, tests: tuple[TestChange, ...] = ()) -> str:
    """The coder's instruction, after the prefix that all samples and roles share."""
    named = ", ".join(f"`{name}`" for name in brief.suspects[:SUSPECTS]) or "the functions above"
    return advised(brief, _failing(brief, tests) + angle(sample)[0].format(suspects=named, language=_language(brief)))


def _language(brief: Brief) -> str:
    return language(brief.excerpts[0].path) if brief.excerpts else "python"


def _failing(brief: Brief, tests: tuple[TestChange, ...]) -> str:
    """Red tests that a tester wrote, with what they say; those of ticket and repository are in the prefix already."""
    shown = [t for t in tests if t.tester > 0 and t.red and t.report]
    texts = [f"{text.strip()}\n{t.report.output if t.report else ''}" for t in shown for text in t.files.values()]
    return f"These tests fail now:\n{fenced(texts[0][:TEST_CHARS], brief.nonce)}\n" if texts else ""


def apply_answer(answer: str, files: dict[str, str]) -> tuple[Ending, dict[str, str]]:
    """Splice every block of `answer` into `files` (path -> text, likeliest first).

    Returns how it ended and the changed files: `done`, `unchanged` (same text), or `invalid` (no block that defines a
    known function and parses).
    """
    changed: dict[str, str] = {}
    matched = False
    for block in code_blocks(answer):
        for path, original in files.items():
            spliced = splice(path, changed.get(path, original), block)
            if spliced is not None:
                matched = True
                changed[path] = spliced
                break
    changed = {path: text for path, text in changed.items() if not _same_code(text, files[path])}
    if changed and all(parses(path, text) for path, text in changed.items()):
        return "done", changed
    return ("unchanged" if matched else "invalid"), {}


def _same_code(one: str, other: str) -> bool:
    def lines(text: str) -> list[str]:
        return [
            line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "//"))
        ]

    return lines(one) == lines(other)


def trial_key(brief: Brief, files: dict[str, str], tests: tuple[TestChange, ...]) -> str:
    """Cache key of one trial run: the base commit and every byte that is written over it."""
    said = json.dumps(
        [brief.repository.base_sha, brief.policy.model_dump(), files, [t.files for t in tests]], sort_keys=True
    )
    return f"trial-{hashlib.sha256(said.encode()).hexdigest()}"


@task(
    name="try change",
    persist_result=True,
    cache_key_fn=lambda _, a: trial_key(a["brief"], a["files"], a["tests"]),
)
async def try_change(brief: Brief, files: dict[str, str | None], tests: tuple[TestChange, ...]) -> TestReport:
    """Run the repository's tests and the new ones with `files` written over the base, in a throw-away worktree."""
    mirror = services.mirror(brief.repository)
    written = {**files, **{path: text for t in tests for path, text in t.files.items()}}
    name = f"trial-{hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:12]}"
    checkout = mirror.worktree(services.worktrees(), brief.ticket.key, name, brief.repository.base_sha)
    async with prepared(checkout, brief.policy, services.sandbox(), written) as worktree:
        return await run_tests(services.sandbox(), worktree.path, brief.policy)


def trial_passes(brief: Brief, report: TestReport, tests: tuple[TestChange, ...]) -> bool:
    """Green: nothing that passed on base fails and every test of `red_ids` passes."""
    if report.error or brief.baseline.ids("passed") - report.ids("passed"):
        return False
    return red_ids(brief, tests) <= report.ids("passed")


def editable_files(brief: Brief) -> dict[str, str]:
    """The files the coder was shown, whole, in the order shown."""
    shown = [e.path for e in brief.excerpts if not is_test_path(e.path)]
    return _texts(services.mirror(brief.repository), brief.repository.base_sha, shown)


def coder_key(arguments: dict[str, Any]) -> str:
    """Cache key of one coder's work: everything it is told, and nothing of the run."""
    names = ("plan", "unit", "candidate", "round", "tests", "feedback", "given")
    plan = arguments["plan"]
    arguments = arguments | {"plan": plan.model_copy(update={"usage": Usage()})}  # the same plan, whatever it took
    model = seat(arguments["job"], "coder", plan.effort).model
    said = [arguments["job"].thought, model, advised(arguments["brief"], arguments["brief"].prefix), PROMPT_VERSION]
    said += [agent] if (agent := coder_agent()) else []
    said += [pydantic_core.to_json(arguments[name]).decode() for name in names]
    return f"coder-{hashlib.sha256(json.dumps(said).encode()).hexdigest()}"


@task(
    name="coder",
    task_run_name="coder {candidate}.{round} {unit.id}",
    persist_result=True,
    cache_key_fn=lambda _, arguments: coder_key(arguments),
)
async def write_code(
    job: Job,
    brief: Brief,
    plan: Plan,
    unit: WorkUnit,
    candidate: int,
    round: int,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
    given: tuple[Change, ...],
) -> Change:
    """One coder's change for one unit. `given` are finished changes of the units it depends on."""
    at = seat(job, "coder", plan.effort)
    job = job.model_copy(update={"model": at.model, "tier": at.tier, "context_tokens": at.context_tokens})
    asker = asker_for(job, "coder", PROMPT_VERSION, candidate=candidate, round=round, effort=plan.effort)
    key = coder_key({"job": job, "brief": brief, "plan": plan, "unit": unit, "candidate": candidate, "round": round,
                     "tests": tests, "feedback": feedback, "given": given})  # fmt: skip
    instruction, laid = advised(brief, _instruction(plan, unit, feedback)), laid_files(tests, feedback, given)
    elsewhere = await code_on_runner(job, brief, unit, asker, instruction=instruction, laid=laid, key=key)
    if elsewhere is not None:
        return await verified_change(job, brief, asker, elsewhere)
    if coder_agent() is not None:
        made = await agent_edit(job, brief, plan, unit, asker, tests, feedback, given)
        return await verified_change(job, brief, asker, made)
    if job.tier == "small":
        return await verified_change(job, brief, asker, await light_edit(job, brief, unit, asker, tests))
    return await tool_edit(job, brief, plan, unit, asker, tests, feedback, given)


def in_waves(units: tuple[WorkUnit, ...]) -> list[tuple[WorkUnit, ...]]:
    """Units grouped so that each group depends only on earlier ones; the units of a group can be coded side by side."""
    waves: list[tuple[WorkUnit, ...]] = []
    done: set[str] = set()
    waiting = list(units)
    while waiting:
        ready = tuple(u for u in waiting if set(u.depends_on) <= done) or tuple(waiting)
        waves.append(ready)
        done |= {u.id for u in ready}
        waiting = [u for u in waiting if u.id not in done]
    return waves


TOOL_INSTRUCTION = """\
The plan, made by the architect:
{plan}

Your unit of it: {unit}
{must_fix}
Work in the checkout with the tools: look, change the code, run the tests. Change only what the unit needs; do not edit \
or remove existing tests. When the tests say that the unit is done, call finish."""
AGENT_LIMITS = AgentLimits(steps=60, tokens=1_000_000, seconds=1800)


class CoderAnswer(Frozen):
    """What a coder hands to `finish`."""

    explanation: str = ""
    """Two sentences: what was wrong and what was changed."""
    claims: tuple[ConfigClaim, ...] = Field(
        default=(),
        description="What people must change outside of the repository, with the lines (path:line) that show it",
    )


async def tool_edit(
    job: Job,
    brief: Brief,
    plan: Plan,
    unit: WorkUnit,
    asker: Asker,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
    given: tuple[Change, ...],
) -> Change:
    """Let a capable model work with tools in a worktree of its own, on the red tests, the units it builds on and, in a
    later round, the best changes so far.
    """
    mirror, base = services.mirror(brief.repository), brief.repository.base_sha
    laid = laid_files(tests, feedback, given)
    async with prepared(coder_checkout(brief, unit, asker), brief.policy, services.sandbox(), laid) as worktree:
        # what hooks left in the checkout is no work of the agent
        start = base if brief.policy.hooks == Hooks() else await worktree.commit(services.sandbox(), "before the agent")
        grant = grant_for(job, "coder", brief.policy, unit)
        note_grant(job, grant)
        toolbox = Toolbox(
            worktree,
            services.sandbox(),
            brief.policy,
            grant,
            answer=CoderAnswer,
            index=CodeIndex(mirror),
            vet=partial(vetted_question, job, brief, asker),
            recall=partial(recall_more, job) if is_on() else None,
        )
        model = RecordedModel(asker, await services.model_named(job.model))
        result = await run_agent(
            model,
            SYSTEM,
            f"{brief.prefix}\n\n---\n{advised(brief, _instruction(plan, unit, feedback))}",
            toolbox,
            AGENT_LIMITS,
            _watch(brief, asker),
            temperature=0.0 if len(plan.units) > 1 else SPREAD[(asker.candidate - 1) % len(SPREAD)],
            seed=job.seed,
            nonce=brief.nonce,
            shared_characters=len(brief.prefix),
        )
        head = await worktree.commit(services.sandbox(), f"{job.ticket.key} {unit.id}")
    files = edited_files(mirror, start, head, laid, coders_tests(mirror, base, feedback, given))
    answer = CoderAnswer.model_validate(result.answer or {})
    said = (answer.explanation or result.explanation)[:400]
    change = Change(unit=unit.id, candidate=asker.candidate, round=asker.round, files=files, explanation=said,
                    ending=result.ending if files or result.ending != "done" else "unchanged", samples=result.steps,
                    passed=result.ending == "done", usage=result.usage)  # fmt: skip
    return await verified_change(job, brief, asker, change, answer.claims)


def _instruction(plan: Plan, unit: WorkUnit, feedback: Feedback) -> str:
    """What a coder with tools is told, after the prefix."""
    fixes = ["The judge wants this fixed:", *(f"- {m}" for m in feedback.must_fix)] if feedback.must_fix else []
    shown = plan.model_dump_json(exclude={"usage", "units"})
    return TOOL_INSTRUCTION.format(plan=shown, unit=unit.model_dump_json(), must_fix="\n".join(fixes))


def _watch(brief: Brief, asker: Asker) -> Callable[[AgentEvent], None]:
    def on_event(event: AgentEvent) -> None:
        if event.kind == "tool":
            _tell(brief, asker, f"step {event.step}: {event.name}")

    return on_event


def _texts(mirror: Mirror, sha: str, paths: Collection[str]) -> dict[str, str]:
    """Those of the files that are UTF-8: editing others would change their other bytes."""
    texts: dict[str, str] = {}
    for path, raw in mirror.read_all(sha, paths).items():
        with suppress(UnicodeDecodeError):
            texts[path] = raw.decode()
    return texts


async def light_edit(job: Job, brief: Brief, unit: WorkUnit, asker: Asker, tests: tuple[TestChange, ...]) -> Change:
    """Sample corrected functions until a trial run is green; otherwise keep the best one seen."""
    files = editable_files(brief)
    best, best_score = Change(unit=unit.id, candidate=asker.candidate, round=asker.round, ending="invalid"), -1
    usage = Usage()
    seen: set[str] = set()
    for sample in range(1, job.max_samples + 1):
        who = asker.model_copy(update={"sample": sample})
        change = await _one_sample(job, brief, unit, who, files, tests)
        usage += change.usage
        digest = json.dumps(change.files, sort_keys=True)
        if change.ending != "done" or digest in seen:
            _tell(
                brief, who, f"sample {sample}: {change.ending if change.ending != 'done' else 'seen before'}, not run"
            )
            best = change if best_score < 0 else best
            continue
        seen.add(digest)
        report = await try_change.with_options(task_run_name=f"try {who.label}")(brief, change.files, tests)
        passed = trial_passes(brief, report, tests)
        _tell(brief, who, f"sample {sample}: {'green' if passed else 'red'}")
        score = _score(brief, report, tests)
        if score > best_score:
            best, best_score = change.model_copy(update={"passed": passed}), score
        if passed:
            break
        if sample == 1:
            edited = await small_edits(job, brief, unit, who, tests)
            if edited is not None:
                best = edited
                break
    return best.model_copy(update={"samples": sample, "usage": usage})


async def small_edits(
    job: Job, brief: Brief, unit: WorkUnit, who: Asker, tests: tuple[TestChange, ...]
) -> Change | None:
    """No model: typical slips turned back one by one while red tests decide. None when no edit makes a trial green."""
    if not red_ids(brief, tests) or brief.policy.test_runner not in ("pytest", "node"):
        return None
    _tell(brief, who, "trying small edits")
    for mutant in await search_edits(brief, tests):
        files: dict[str, str | None] = {mutant.path: mutant.text}
        report = await try_change.with_options(task_run_name=f"try edit {who.label}")(brief, files, tests)
        if trial_passes(brief, report, tests):
            _tell(brief, who, f"a small edit is green: {mutant.what}")
            words = f"Found by search, not written by the model: {mutant.what} of {mutant.path}."
            return Change(unit=unit.id, candidate=who.candidate, round=who.round, ending="done", files=files,
                          explanation=words, passed=True)  # fmt: skip
    _tell(brief, who, "no small edit is green")
    return None


def red_ids(brief: Brief, tests: tuple[TestChange, ...]) -> set[str]:
    """The tests that should turn green: the ticket's own examples and those of the repository that fail and that it
    names, else what testers wrote (which may be wrong), else whatever fails in the repository.
    """
    failing = brief.baseline.ids("failed")
    said = f"{brief.ticket.title}\n{brief.ticket.body}"
    named = {name for name in failing if _is_named(name, said)}
    own = {name for t in tests if t.tester == 0 for name in t.red}
    return (own | named) or {name for t in tests for name in t.red} or failing


def _is_named(test: str, text: str) -> bool:
    """Whether a text names a test by its file or by its last part: `tests/a.py::test_b`, `test/a.js > b`."""
    file, _, name = test.replace(" > ", "::").partition("::")
    return file in text or bool(name and name.rsplit("::", 1)[-1].split("[")[0] in text)


@task(
    name="search small edits",
    persist_result=True,
    cache_key_fn=lambda _, a: "edits-" + trial_key(a["brief"], {}, a["tests"]),
)
async def search_edits(brief: Brief, tests: tuple[TestChange, ...]) -> list[Mutant]:
    """Up to `EDITS_WANTED` single edits that turn the red tests green, likeliest slips first."""
    red = red_ids(brief, tests)
    mirror = services.mirror(brief.repository)
    runner = brief.policy.test_runner or "pytest"
    sandbox = services.sandbox()
    laid = {path: text for test in tests for path, text in test.files.items()}
    checkout = mirror.worktree(services.worktrees(), brief.ticket.key, "edits", brief.repository.base_sha)
    async with prepared(checkout, brief.policy, sandbox, laid) as worktree:
        run = await executed_lines(sandbox, worktree.path, red, seconds=60) if runner == "pytest" else None
        run = run or None  # an empty trace is a failed one: then the suspects are all there is
        candidates = await asyncio.to_thread(_candidate_edits, brief, run)
        return await green_mutants(
            sandbox,
            worktree.path,
            candidates,
            runner=runner,
            red=red,
            suite=_suite(brief, runner),
            seconds=EDIT_SEARCH_SECONDS,
            enough=EDITS_WANTED,
        )


def _candidate_edits(brief: Brief, run: dict[str, frozenset[int]] | None) -> list[Mutant]:
    """Edits of the functions the red tests run through (or, where that is unknown, of the suspects), interleaved by file."""
    mirror, sha = services.mirror(brief.repository), brief.repository.base_sha
    paths = likely_paths(brief) if run is None else [p for p in source_files(mirror.paths(sha)) if p in run]
    files = _texts(mirror, sha, paths)
    ranked = rank_functions(brief.ticket, files, brief.baseline.output)
    known = {r.function.qualified_name for r in ranked} if run is not None else set(brief.suspects)
    found: list[Mutant] = []
    for path, text in files.items():
        targets = [r.function for r in ranked if r.path == path and r.function.qualified_name in known]
        found += mutants(path, text, targets, MAX_EDITS, run[path] if run is not None else None)
    return sorted(found, key=lambda m: m.cost)[:MAX_EDITS]


def _suite(brief: Brief, runner: str) -> list[str]:
    """What must stay green during the search: ids for pytest, for node files without a failing test."""
    passed, failed = brief.baseline.ids("passed"), brief.baseline.ids("failed")
    if runner == "pytest":
        return sorted(passed)[:500]
    return sorted({name.split(" > ")[0] for name in passed} - {name.split(" > ")[0] for name in failed})


async def _one_sample(
    job: Job, brief: Brief, unit: WorkUnit, who: Asker, files: dict[str, str], tests: tuple[TestChange, ...]
) -> Change:
    """One answer of the model, spliced in. Nothing is run. An answer that ends before its code is asked to go on."""
    request = _sample_request(job, brief, who, tests)
    completion = await ask(who, request, job.model)
    text, usage = continued(angle(who.sample)[1], completion.text), completion.usage
    if not code_blocks(text):
        text = f"{text.rstrip()}\n\n```{_language(brief)}\n"
        begun = (*request.messages[:-1], Message(role="assistant", content=text))
        completion = await ask(who, request.model_copy(update={"messages": begun}), job.model)
        text, usage = continued(text, completion.text), usage + completion.usage
    ending, changed = apply_answer(text, files)
    if completion.finish_reason == "length" and ending != "done":
        ending = "truncated"
    return Change(unit=unit.id, candidate=who.candidate, round=who.round, ending=ending, files=dict(changed),
                  explanation=explanation(text), usage=usage)  # fmt: skip


def _tell(brief: Brief, who: Asker, message: str) -> None:
    progress.report(brief.ticket.key, phase="code", role=who.label, message=message)


def _score(brief: Brief, report: TestReport, tests: tuple[TestChange, ...]) -> int:
    """Orders red trials: first break nothing, then turn more red tests green."""
    if report.error:
        return 0
    broken = len(brief.baseline.ids("passed") - report.ids("passed"))
    return 1000 - 10 * min(broken, 99) + len(red_ids(brief, tests) & report.ids("passed"))


def _sample_request(job: Job, brief: Brief, asker: Asker, tests: tuple[TestChange, ...]) -> ModelRequest:
    return ModelRequest(
        messages=(
            *chat(brief.prefix, SYSTEM, light_instruction(brief, asker.sample, tests)),
            Message(role="assistant", content=angle(asker.sample)[1]),
        ),
        max_tokens=_token_bound(brief),
        temperature=TEMPERATURES[(asker.sample - 1) % len(TEMPERATURES)],
        seed=job.seed * 10_000 + asker.round * 1_000 + asker.candidate * 100 + asker.sample,
    )


def _token_bound(brief: Brief) -> int:
    """Room for the sentences and for the longest function shown, at about 3 characters a token."""
    longest = max((len(f.text) for e in brief.excerpts for f in functions(e.path, e.text)), default=1_500)
    return min(SAMPLE_TOKENS, 250 + longest // 3)


def explanation(answer: str) -> str:
    """What the model said before its first block, one paragraph at most."""
    return " ".join(answer.split("```", 1)[0].split())[:400]
