"""The tester: writes tests from ticket and plan without seeing any change. Only tests that fail on the base commit count.

Tester 0 is no model: it takes the ticket's own `>>>` examples word for word. The others ask the model.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from prefect import task

from infra.syntax import functions, parses
from infra.test_runners import is_test_path
from tasks import paper, progress, services
from tasks.answers import code_blocks, continued
from tasks.asking import Asker, ask, asker_for, chat
from tasks.code_search import sources
from tasks.context import SYSTEM, advised
from tasks.evidence import red_tests
from tasks.models import Brief, Evidence, Job, Message, ModelRequest, Plan, TestChange, TestReport, Ticket, Usage
from tasks.paper import Signature, Status
from tasks.seats import Seat, seat

PROMPT_VERSION = "tester-2"
TEST_TOKENS = 500
SAMPLES = 3
TEMPERATURES = (0.2, 0.7, 0.9)

PYTHON_INSTRUCTION = """\
Write pytest tests for what the ticket asks: they fail on the code above and pass when the ticket is done. One test \
function of one or two lines for each example that the ticket gives, at most four, with exactly the ticket's inputs and \
expected values. No fixtures, no mocks, no other tests. Answer with one ```python block that starts with:
{imports}"""

ANGLES = (
    "acceptance: one test for each of these checks of the plan: {acceptance}",
    "edge cases: empty, smallest, largest, wrong and unusual input, where the ticket, the plan or the documentation in the "
    "code says what is right. The plan thinks of these: {edge_cases}",
    "regression: the same mistake reached in another way, through the callers of the code that changes and through "
    "inputs close to the ticket's, and beside it what works today and has to go on working",
)
"""What tester 1, 2 and 3 look for."""

PLANNED_PYTHON_INSTRUCTION = """\
You are tester {number}. Your angle is {angle}.
Write pytest tests for what the ticket asks: at least one fails on the code above, and all of them pass when the ticket is \
done. One short test function for each behaviour, at most eight. Expected values come from the ticket, the plan or the \
documentation in the code, never from a guess. No mocks, nothing private. Answer with one ```python block that starts with:
{imports}"""

PLANNED_NODE_INSTRUCTION = """\
You are tester {number}. Your angle is {angle}.
Write tests for node's built-in runner for what the ticket asks: at least one fails on the code above, and all of them pass \
when the ticket is done. One short test for each behaviour, at most eight. Expected values come from the ticket, the plan or \
the documentation in the code, never from a guess. No mocks, nothing private. Answer with one ```javascript block that \
starts with:
{imports}"""

APPLICATION_INSTRUCTION = """\
You are tester {number}. Your angle is {angle}.
The ticket is the specification of an application. It is not there yet: others write it from this plan, which is all that \
you and they share:
{plan}
Write {runner} tests of what the specification asks for, through what `api_surface` names and nothing else. All of them fail \
today and pass when the application does what it should. One short test for each behaviour, at most twelve. Expected values \
come from specification and plan, never from a guess. Only the standard library, files only in a temporary folder, no \
network, no mocks. {imports} Answer with one ```{language} block."""
_IMPORTS = {
    "pytest": "Import the application's modules at the top, from the repository's root (a leading `src` or `lib` is left out).",
    "node": "Import `node:test` and `node:assert/strict` at the top, and the application's modules inside each test with "
    "`await import('{up}PATH')`, where PATH is the path of the plan.",
}

NODE_INSTRUCTION = """\
Write tests for node's built-in runner for what the ticket asks: they fail on the code above and pass when the ticket is \
done. One short test for each example that the ticket gives, at most four, with exactly the ticket's inputs and expected \
values. No other tests. Answer with one ```javascript block that starts with:
{imports}"""


def module_name(path: str) -> str:
    """The dotted import name of a Python file: `src/pkg/mod.py` -> `pkg.mod`, `pkg/__init__.py` -> `pkg`."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    parts = parts[1:] if parts[0] in ("src", "lib") and len(parts) > 1 else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def public_names(files: Mapping[str, str]) -> dict[str, str]:
    """Module-level function and class names of source files -> path; the first file that defines a name wins."""
    names: dict[str, str] = {}
    for path, text in files.items():
        for function in functions(path, text):
            name = function.qualified_name.split(".")[0]
            names.setdefault(name, path)
    return names


def python_imports(used: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """One import line per module for the used names that the repository defines."""
    by_module: dict[str, list[str]] = {}
    for name in sorted(set(used)):
        if name in names and names[name].endswith(".py"):
            by_module.setdefault(module_name(names[name]), []).append(name)
    return [f"from {module} import {', '.join(found)}" for module, found in sorted(by_module.items())]


def _identifiers(code: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", code))


def ticket_examples(body: str, names: Mapping[str, str]) -> str | None:
    """A pytest file from the `>>>` examples of a ticket, one test per expected value, or None when it has none."""
    try:
        examples = doctest.DocTestParser().get_examples(body.replace("```", "\n\n```"))
    except ValueError:
        return None
    tests, setup, used = [], "", set[str]()
    for example in examples:
        used |= _identifiers(example.source)
        if example.want.strip():
            tests.append((setup, example))
        setup += _prompted(_silenced(example))
    imports = python_imports(used, names)
    if not tests or not (imports or "import" in setup):
        return None
    return "\n".join([_EXAMPLES_HEAD, *imports, *(_example_test(i, s, e) for i, (s, e) in enumerate(tests, 1)), ""])


def _silenced(example: doctest.Example) -> str:
    """An example as a step before later ones: run for its effect, its value dropped; one that raises is left out."""
    if example.exc_msg is not None:
        return ""
    try:
        ast.parse(example.source, mode="eval")
    except SyntaxError:
        return example.source
    return f"_ = ({example.source.strip()})"


def _prompted(source: str) -> str:
    """Source as doctest writes it, with `>>>` and `...`."""
    return f">>> {source.rstrip()}".replace("\n", "\n... ") + "\n" if source.strip() else ""


_EXAMPLES_HEAD = '''\
"""The examples of the ticket, word for word."""

import doctest
'''


def _example_test(number: int, setup: str, example: doctest.Example) -> str:
    text = f"{setup}{_prompted(example.source)}{example.want}"
    return (
        f"\n\ndef test_ticket_example_{number}():\n    example = {text!r}\n"
        "    parsed = doctest.DocTestParser().get_doctest(example, dict(globals()), 'ticket', None, 0)\n"
        "    report = []\n"
        "    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(parsed, out=report.append).failed\n"
        "    assert not failed, ''.join(report)"
    )


def tidy_python_test(answer: str, names: Mapping[str, str], said: str | None = "") -> str | None:
    """The answer's test functions as a file that imports what it uses; None when there is no test with an assertion.

    `said` is the ticket's text: when some tests use only values from it, those that invent values are dropped. None
    keeps them all.
    """
    for block in reversed(code_blocks(answer) or [answer]):
        tree = _parsed(block)
        kept = [node for node in tree.body if not _repeats_the_code(node, names)] if tree else []
        tests = [node for node in kept if _is_test(node)]
        grounded = [node for node in tests if said is None or _is_grounded(node, said)]
        kept = [node for node in kept if node not in tests or node in (grounded or tests)]
        if tests:
            body = "\n\n\n".join(ast.unparse(node) for node in kept)
            imports = python_imports(_identifiers(body), names)
            return "\n".join([*imports, "", "", body, ""]).lstrip("\n")
    return None


def _parsed(block: str) -> ast.Module | None:
    """The block's syntax tree; lines are taken off the end of one that was cut off until it parses."""
    lines = block.rstrip().split("\n")
    for end in range(len(lines), max(0, len(lines) - 30), -1):
        try:
            return ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
    return None


def _is_grounded(test: ast.stmt, said: str) -> bool:
    """Whether every text and number that the test's assertions use stands in the ticket."""
    asserts = [node for node in ast.walk(test) if isinstance(node, ast.Assert | ast.With)]
    values = [n.value for a in asserts for n in ast.walk(a) if isinstance(n, ast.Constant)]
    return all(
        str(v) in said
        for v in values
        if isinstance(v, str | int | float) and not isinstance(v, bool) and v not in ("", 0, 1)
    )


def _repeats_the_code(node: ast.stmt, names: Mapping[str, str]) -> bool:
    """Copies of the code under test, guessed imports of it, and calls at module level are dropped."""
    if isinstance(node, ast.ImportFrom | ast.Import):
        return bool({alias.name for alias in node.names} & names.keys())
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name in names
    return isinstance(node, ast.If | ast.Expr)


def _is_test(node: ast.stmt) -> bool:
    named = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test")
    asserts = any(isinstance(n, ast.Assert) or "raises" in _called(n) for n in ast.walk(node))
    return named and asserts


def _called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def tidy_node_test(answer: str) -> str | None:
    """The answer's block when it holds a node test with an assertion and parses, else None."""
    for block in reversed(code_blocks(answer) or [answer]):
        if re.search(r"\b(test|it)\(", block) and "assert" in block and parses("x.mjs", block):
            return block.strip() + "\n"
    return None


def test_folder(paths: Iterable[str]) -> str:
    """Where this repository keeps its tests (the most used folder), with a trailing slash; `tests/` when it has none."""
    folders = [str(PurePosixPath(p).parent) for p in paths if is_test_path(p) and not p.endswith("conftest.py")]
    best = max(sorted(set(folders)), key=folders.count, default="tests")
    return "" if best == "." else f"{best}/"


def new_test_path(brief: Brief, tester: int, paths: Collection[str]) -> str:
    """A test file name that no file of the repository has, the same on every run."""
    slug = re.sub(r"\W+", "_", brief.ticket.key.lower()).strip("_")
    who = "examples" if tester == 0 else f"{tester}"
    name = f"{slug}_{who}.test.mjs" if brief.policy.test_runner == "node" else f"test_{slug}_{who}.py"
    taken = set(paths)
    while test_folder(taken) + name in taken:
        name = f"{name.split('.', 1)[0]}_new.{name.split('.', 1)[1]}"
    return test_folder(taken) + name


def instruction(brief: Brief, imports: str) -> str:
    """A small model's instruction with the import lines of what the ticket names."""
    form = NODE_INSTRUCTION if brief.policy.test_runner == "node" else PYTHON_INSTRUCTION
    return form.format(imports=imports)


def planned_instruction(brief: Brief, plan: Plan, number: int, imports: str) -> str:
    """A capable tester's instruction: its angle on ticket and plan."""
    form = PLANNED_NODE_INSTRUCTION if brief.policy.test_runner == "node" else PLANNED_PYTHON_INSTRUCTION
    angle = ANGLES[(number - 1) % len(ANGLES)].format(
        acceptance="; ".join(plan.acceptance) or "what the ticket asks",
        edge_cases="; ".join(plan.edge_cases) or "none yet",
    )
    return form.format(number=number, angle=angle, imports=imports)


def application_instruction(brief: Brief, plan: Plan, number: int, path: str) -> str:
    """A tester's instruction for an application that is still to be written: the plan says what there will be to test."""
    angle = ANGLES[(number - 1) % 2].format(
        acceptance="; ".join(plan.acceptance), edge_cases="; ".join(plan.edge_cases) or "none yet"
    )
    shown = plan.model_dump_json(include={"summary", "components", "data_models", "api_surface", "file_layout"})
    runner = "node" if brief.policy.test_runner == "node" else "pytest"
    return APPLICATION_INSTRUCTION.format(
        number=number, angle=angle, plan=shown, runner="node's built-in runner's" if runner == "node" else "pytest",
        language="javascript" if runner == "node" else "python",
        imports=_IMPORTS[runner].format(up="../" * path.count("/") or "./"),
    )  # fmt: skip


def import_lines(brief: Brief, names: Mapping[str, str], path: str) -> str:
    """Imports of the functions that the ticket names as code, else of the likeliest suspects, for a test file at `path`."""
    shown = {name: file for name, file in names.items() if file in {e.path for e in brief.excerpts}}
    named = _called_names(brief.ticket)
    suspected = {name.split(".")[0] for name in brief.suspects[:2]}
    used = [n for n in shown if n in named] or [n for n in shown if n in suspected] or list(shown)
    if brief.policy.test_runner != "node":
        return "\n".join(python_imports(used, shown)) or "import pytest"
    up = "../" * path.count("/") or "./"
    by_file: dict[str, list[str]] = {}
    for name in used:
        by_file.setdefault(shown[name], []).append(name)
    imports = [f"import {{ {', '.join(found)} }} from '{up}{file}';" for file, found in by_file.items()]
    return "\n".join(["import test from 'node:test';", "import assert from 'node:assert/strict';", *imports])


def _called_names(ticket: Ticket) -> set[str]:
    """Names that the ticket writes as code: before a bracket, in backticks, or after a dot or `import`."""
    said = f"{ticket.title}\n{ticket.body}"
    found = re.findall(r"([A-Za-z_]\w*)\(|`[\w.]*?([A-Za-z_]\w*)`|import ([A-Za-z_]\w*)", said)
    return {name for group in found for name in group if name}


def _red_key(brief: Brief, files: Mapping[str, str]) -> str:
    said = json.dumps([brief.repository.base_sha, brief.policy.model_dump(), dict(files)], sort_keys=True)
    return f"red-{hashlib.sha256(said.encode()).hexdigest()}"


@task(name="run new tests on base", persist_result=True, cache_key_fn=lambda _, a: _red_key(a["brief"], a["files"]))
async def run_on_base(brief: Brief, files: dict[str, str]) -> TestReport:
    """The new tests on the unchanged base commit; those that fail there for the right reason are red."""
    return await red_tests(services.mirror(brief.repository), services.sandbox(), services.worktrees(), brief, files)


async def examples_as_tests(brief: Brief) -> TestChange | None:
    """Tester 0: the ticket's own examples, when at least one of them fails on the base commit."""
    files = sources(brief)
    text = ticket_examples(brief.ticket.body, public_names(files)) if brief.policy.test_runner == "pytest" else None
    if text is None:
        return None
    path = new_test_path(brief, 0, services.mirror(brief.repository).paths(brief.repository.base_sha))
    change = await checked(brief, 0, {path: text})
    return change if change.red else None


@task(name="tester", task_run_name="tester {number}.{round}")
async def write_tests(job: Job, brief: Brief, plan: Plan, number: int, round: int) -> TestChange:
    """One tester's new tests, checked on the base commit. Never sees a change."""
    asker = asker_for(job, "tester", PROMPT_VERSION, candidate=number, round=round, effort=plan.effort)
    at = seat(job, "tester", plan.effort)
    change = await sample_tests(job, brief, plan, asker, at)
    signed = Signature(role="tester", index=number, round=round, model=at.model, prompt_version=PROMPT_VERSION,
                       status=_STATUS.get(change.ending, "fail"), usage=change.usage)  # fmt: skip
    await paper.leave_sheet(job, f"tests-{number}-{round}", signed, _as_markdown(change), change)
    return change


_STATUS: dict[str, Status] = {"done": "success", "unchanged": "partial"}


async def sample_tests(job: Job, brief: Brief, plan: Plan, asker: Asker, at: Seat) -> TestChange:
    """Sample until a test fails on base. `ending` is `done` with red tests, else `invalid` or `unchanged` (all green)."""
    names = public_names(sources(brief))
    path = new_test_path(brief, asker.candidate, services.mirror(brief.repository).paths(brief.repository.base_sha))
    change = TestChange(tester=asker.candidate, ending="invalid")
    usage = Usage()
    for sample in range(1, SAMPLES + 1):
        who = asker.model_copy(update={"sample": sample})
        completion = await ask(who, _request(job, brief, plan, names, path, who, at), at.model)
        usage += completion.usage
        text = read_tests(brief, continued(opening(at, brief, names, path), completion.text), names, at)
        if text is None:
            continue
        change = await checked(brief, asker.candidate, {path: text})
        progress.report(
            job.ticket.key, phase="test", role=who.label, message=f"{len(change.red)} new test(s) fail on base"
        )
        if change.red:
            break
    return change.model_copy(update={"usage": usage})


async def checked(brief: Brief, tester: int, files: dict[str, str]) -> TestChange:
    """New test files with what they do on the base commit."""
    report = await run_on_base(brief, files)
    red = tuple(sorted(report.ids("failed")))
    return TestChange(tester=tester, files=files, red=red, report=report, ending="done" if red else "unchanged")


def credible_tests(tests: tuple[TestChange, ...], evidence: Evidence, *, last_round: bool) -> tuple[TestChange, ...]:
    """The tests without those a model wrote that the change leaves red, where enough else speaks for the change.

    A generated test may simply be wrong. It is dropped when a test of the ticket or of the repository turned green, or
    in the last round when more generated tests turned green than stay red. Otherwise it stays and is an objection.
    """
    by_model = {name for t in tests if t.tester > 0 for name in t.red}
    red, green = by_model & set(evidence.still_red), by_model & set(evidence.fixed)
    vouched = bool(set(evidence.fixed) - by_model) or (last_round and len(green) > len(red))
    if not red or not vouched:
        return tests
    kept = (without_tests(t, red) if t.tester > 0 else t for t in tests)
    return tuple(t for t in kept if t.red)


def without_tests(change: TestChange, names: set[str]) -> TestChange:
    """The change without the named tests; a file of another language than Python goes as a whole."""
    gone = {name.split("[")[0] for name in names}
    files: dict[str, str] = {}
    for path, text in change.files.items():
        functions_gone = {name.rsplit("::", 1)[-1] for name in gone if name.startswith(f"{path}::")}
        if not any(name.startswith(path) for name in gone):
            files[path] = text
        elif path.endswith(".py") and functions_gone:
            files[path] = _without_functions(text, functions_gone)
    left = tuple(n for n in change.red if n.split("[")[0] not in gone and any(n.startswith(p) for p in files))
    return change.model_copy(update={"files": files, "red": left})


def _without_functions(text: str, names: set[str]) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            node.body = [n for n in node.body if not (isinstance(n, ast.FunctionDef) and n.name in names)] or [
                ast.Pass()
            ]
    return ast.unparse(tree) + "\n"


def _as_markdown(change: TestChange) -> str:
    red = [f"- `{name}`" for name in change.red] or ["- none"]
    files = [f"`{path}`\n```\n{text}\n```" for path, text in change.files.items()]
    return "\n".join(["Fail on the base commit:", *red, "", *files])


def read_tests(brief: Brief, answer: str, names: Mapping[str, str], at: Seat) -> str | None:
    """The test file in an answer, or None when it has none that can be used."""
    if brief.policy.test_runner == "node":
        return tidy_node_test(answer)
    return tidy_python_test(answer, names, f"{brief.ticket.title}\n{brief.ticket.body}" if at.tier == "small" else None)


def opening(at: Seat, brief: Brief, names: Mapping[str, str], path: str) -> str:
    """The first words of a small model's answer, given so that it keeps to the form; empty for a capable model."""
    if at.tier != "small":
        return ""
    if brief.policy.test_runner == "node":
        return f"```javascript\n{import_lines(brief, names, path)}\n\ntest('"
    return f"```python\n{import_lines(brief, names, path)}\n\n\ndef test_"


def _request(
    job: Job, brief: Brief, plan: Plan, names: Mapping[str, str], path: str, asker: Asker, at: Seat
) -> ModelRequest:
    start, imports, small = opening(at, brief, names, path), import_lines(brief, names, path), at.tier == "small"
    begun = (Message(role="assistant", content=start),) if start else ()
    asked = instruction(brief, imports) if small else planned_instruction(brief, plan, asker.candidate, imports)
    if job.greenfield:
        asked = application_instruction(brief, plan, asker.candidate, path)
    return ModelRequest(
        messages=(*chat(brief.prefix, SYSTEM, advised(brief, asked)), *begun),
        max_tokens=TEST_TOKENS if small else (12 if job.greenfield else 4) * TEST_TOKENS,
        stop=("\n```",) if start else (),
        temperature=TEMPERATURES[(asker.sample - 1) % len(TEMPERATURES)],
        seed=job.seed * 10_000 + 5_000 + asker.round * 1_000 + asker.candidate * 100 + asker.sample,
    )
