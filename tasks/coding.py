"""The coder: changes the code so that the ticket's behaviour comes true. Two ways behind one interface.

Small models get no tools: they see the code, say in one or two sentences what is wrong and write the corrected
function, which is spliced in by syntax tree; tests decide, and a failure means a fresh sample. Capable models work
with tools in a worktree (`tasks.agent`).
"""

from __future__ import annotations

import hashlib
import json
import re

from prefect import task

from infra.syntax import parses, splice
from infra.test_runners import run_tests
from tasks import progress, services
from tasks.asking import Asker, ask, chat
from tasks.context import SYSTEM, is_test_path, language
from tasks.models import Brief, Change, Ending, Job, ModelRequest, Plan, TestChange, TestReport, Usage, WorkUnit

PROMPT_VERSION = "coder-1"
TEMPERATURES = (0.2, 0.6, 0.8, 0.7, 0.9)
"""One per sample; rising temperature beat feeding the failure back (notes/llm.md)."""
SAMPLE_TOKENS = 900

LIGHT_INSTRUCTION = """\
Fix the ticket. First say in one or two sentences what is wrong in the code. Then write the whole corrected function \
in one ```{language} block: same name, same signature, nothing else in the block. Do not write tests."""


def light_instruction(brief: Brief) -> str:
    """The coder's instruction; the same for every sample, so that only a few tokens are read anew."""
    return LIGHT_INSTRUCTION.format(language=language(brief.excerpts[0].path) if brief.excerpts else "python")


def code_blocks(answer: str) -> list[str]:
    """The fenced blocks of an answer in order; an unclosed last block counts."""
    return [block for block in re.findall(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", answer, flags=re.S) if block.strip()]


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
        return [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "//"))]

    return lines(one) == lines(other)


def trial_key(brief: Brief, files: dict[str, str], tests: tuple[TestChange, ...]) -> str:
    """Cache key of one trial run: the base commit and every byte that is written over it."""
    said = json.dumps([brief.repository.base_sha, brief.policy.model_dump(), files, [t.files for t in tests]], sort_keys=True)
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
    with mirror.worktree(services.worktrees(), brief.ticket.key, name, brief.repository.base_sha) as worktree:
        for path, text in written.items():
            if text is not None:
                worktree.write(path, text)
        return await run_tests(services.sandbox(), worktree.path, brief.policy)


def trial_passes(brief: Brief, report: TestReport, tests: tuple[TestChange, ...]) -> bool:
    """Green: nothing that passed on base fails, every red test of the ticket passes, and something red turned green."""
    if report.error or brief.baseline.ids("passed") - report.ids("passed"):
        return False
    red = {name for t in tests for name in t.red}
    wanted = red or brief.baseline.ids("failed")
    passed = report.ids("passed")
    return red <= passed and (not wanted or bool(wanted & passed))


def editable_files(brief: Brief) -> dict[str, str]:
    """The files the coder was shown, whole, in the order shown."""
    mirror = services.mirror(brief.repository)
    shown = dict.fromkeys(e.path for e in brief.excerpts if not is_test_path(e.path))
    texts = {path: mirror.read(brief.repository.base_sha, path) for path in shown}
    return {path: raw.decode(errors="replace") for path, raw in texts.items() if raw is not None}


@task(name="coder", task_run_name="coder {candidate}.{round} {unit.id}")
async def write_code(
    job: Job,
    brief: Brief,
    plan: Plan,
    unit: WorkUnit,
    candidate: int,
    round: int,
    tests: tuple[TestChange, ...],
    must_fix: tuple[str, ...],
    given: tuple[Change, ...],
) -> Change:
    """One coder's change for one unit. `given` are finished changes of units it depends on; `must_fix` the judge's words."""
    asker = Asker(ticket=job.ticket.key, attempt_id=job.attempt_id, thought=job.thought, role="coder",
                  prompt_version=PROMPT_VERSION, candidate=candidate, round=round)  # fmt: skip
    return await light_edit(job, brief, unit, asker, tests)


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


async def light_edit(job: Job, brief: Brief, unit: WorkUnit, asker: Asker, tests: tuple[TestChange, ...]) -> Change:
    """Sample corrected functions until a trial run is green; otherwise keep the best one seen."""
    files = editable_files(brief)
    best, best_score = Change(unit=unit.id, candidate=asker.candidate, round=asker.round, ending="invalid"), -1
    usage = Usage()
    seen: set[str] = set()
    for sample in range(1, job.max_samples + 1):
        who = asker.model_copy(update={"sample": sample})
        change = await _one_sample(job, brief, unit, who, files)
        usage += change.usage
        digest = json.dumps(change.files, sort_keys=True)
        if change.ending != "done" or digest in seen:
            _tell(brief, who, f"sample {sample}: {change.ending if change.ending != 'done' else 'seen before'}, not run")
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
    return best.model_copy(update={"samples": sample, "usage": usage})


async def _one_sample(job: Job, brief: Brief, unit: WorkUnit, who: Asker, files: dict[str, str]) -> Change:
    """One answer of the model, spliced in. Nothing is run."""
    completion = await ask(who, _sample_request(job, brief, who), job.model)
    ending, changed = apply_answer(completion.text, files)
    if completion.finish_reason == "length" and ending != "done":
        ending = "truncated"
    return Change(unit=unit.id, candidate=who.candidate, round=who.round, ending=ending, files=dict(changed),
                  explanation=explanation(completion.text), usage=completion.usage)  # fmt: skip


def _tell(brief: Brief, who: Asker, message: str) -> None:
    progress.report(brief.ticket.key, phase="code", role=who.label, message=message)


def _score(brief: Brief, report: TestReport, tests: tuple[TestChange, ...]) -> int:
    """Orders red trials: first break nothing, then turn more red tests green."""
    if report.error:
        return 0
    broken = len(brief.baseline.ids("passed") - report.ids("passed"))
    wanted = {name for t in tests for name in t.red} | brief.baseline.ids("failed")
    return 1000 - 10 * min(broken, 99) + len(wanted & report.ids("passed"))


def _sample_request(job: Job, brief: Brief, asker: Asker) -> ModelRequest:
    return ModelRequest(
        messages=chat(brief.prefix, SYSTEM, light_instruction(brief)),
        max_tokens=SAMPLE_TOKENS,
        temperature=TEMPERATURES[(asker.sample - 1) % len(TEMPERATURES)],
        seed=job.seed * 10_000 + asker.round * 1_000 + asker.candidate * 100 + asker.sample,
    )


def explanation(answer: str) -> str:
    """What the model said before its first block, one paragraph at most."""
    return " ".join(answer.split("```", 1)[0].split())[:400]
