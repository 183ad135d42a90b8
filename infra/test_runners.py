"""Running a repository's tests and knowing what happened to each: pytest, node's runner, or a bare exit code.

Results are written by our own reporter, never read from what a command prints. Code under test shares a process with
pytest, so no report is beyond forging; what is cheap to forge is not: see PYTEST_RECORDER and NODE_REPORTER.
"""

from __future__ import annotations

import configparser
import hmac
import json
import os
import re
import secrets
import shlex
import stat
import tomllib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ValidationError

from infra.errors import ConfigError
from infra.llm import Frozen
from infra.sandbox import CommandResult, Sandbox

Runner = Literal["pytest", "node", "exit-code"]
Result = Literal["passed", "failed", "skipped"]

PYTEST = "python -m pytest -q"
NODE = "node --test"
MAX_RESULT_BYTES = 32 << 20
"""A results file beyond this is not read: some 100,000 tests with their failures fit."""

TEST_SHARE = 0.25
"""Share of the whole time that one pytest test or one node test file may take before it fails by itself."""

_NODE_TEST_FILE = re.compile(r"(^|/)(test[-_./].*|.*[-_.]test)\.[cm]?js$|(^|/)tests?/.*\.[cm]?js$")


class TestResult(Frozen):
    """What happened to one test. `exception` is a class name or an error code; `frames` are the files of the checkout
    that the exception passed through, outermost first; `phase` is `collect` when the file could not even be loaded.
    A node test file that ran too long fails as a whole, with exception `Timeout`.
    """

    __test__ = False

    outcome: Result
    phase: Literal["collect", "setup", "call", "teardown"] = "call"
    exception: str = ""
    message: str = ""
    frames: tuple[str, ...] = ()


class TestRun(Frozen):
    """One run of a test command. `error` says why it tells nothing about the code, else None."""

    __test__ = False

    command: str
    exit_code: int
    results: dict[str, TestResult] = {}
    seconds: float = 0.0
    timed_out: bool = False
    output: str = ""
    """Trimmed for people and prompts (see `trim_failure`)."""
    error: str | None = None


def detect_policy(paths: Iterable[str], read: Callable[[str], str | None]) -> tuple[str | None, Runner]:
    """How a repository is tested, from its file names and what `read(path)` says: (shell command or None, runner).

    Python wins over JavaScript when both are there, and a package.json whose test script is no node runner is run by
    `npm test`. A repository with code and no tests still gets its language's runner: new tests need one.
    """
    names = list(paths)
    script = _npm_test_script(read("package.json")) if "package.json" in names else None
    if any(name.endswith(".py") for name in names):
        return PYTEST, "pytest"
    if script and not re.match(r"node\s.*--test\b", script):
        return "npm test", "exit-code"
    if script:
        return script, "node"
    if "package.json" in names or any(_NODE_TEST_FILE.search(name) for name in names):
        return NODE, "node"
    if re.search(r"^test\s*:", (read("Makefile") or "") if "Makefile" in names else "", re.MULTILINE):
        return "make test", "exit-code"
    return None, "exit-code"


def _npm_test_script(package: str | None) -> str | None:
    """The `test` script, or None where there is none worth running (npm's own placeholder exits with an error)."""
    with suppress(ValueError, AttributeError):
        script = json.loads(package or "").get("scripts", {}).get("test")
        if isinstance(script, str) and "no test specified" not in script:
            return script.strip() or None
    return None


def is_test_path(path: str) -> bool:
    """True for files that hold or feed tests by the conventions of pytest, node, Jest and Go."""
    *folders, name = PurePosixPath(path).parts
    by_name = re.match(r"test_.*|.*_test\.\w+|.*\.(test|spec)\.\w+|conftest\.py$", name) is not None
    return by_name or any(part in ("tests", "test", "__tests__", "spec") for part in folders)


_CONFIG_FILES = ("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "sitecustomize.py",
                 "usercustomize.py", ".coveragerc", ".npmrc", ".mocharc.json")  # fmt: skip


def settings_of_tests(path: str, text: str | None) -> str | None:
    """The part of a file that decides how tests are found and run, in a form that compares equal when it is the same.

    None when the file decides nothing. A file that cannot be parsed counts whole, so that breaking it shows.
    """
    name = PurePosixPath(path).name
    if text is None:
        return None
    if name in _CONFIG_FILES or name.startswith(("jest.config", "vitest.config")) or name.endswith((".pth", ".pyc")):
        return text
    reader = _SETTINGS_READERS.get(name)
    if reader is None:
        return None
    try:
        return reader(text) or None
    except (ValueError, configparser.Error, AttributeError):
        return text


def _from_toml(text: str) -> str:
    found = tomllib.loads(text).get("tool", {}).get("pytest")
    return json.dumps(found, sort_keys=True, default=str) if found else ""


def _from_ini(text: str) -> str:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(text)
    found = {name: dict(parser[name]) for name in ("pytest", "tool:pytest", "testenv") if parser.has_section(name)}
    return json.dumps(found) if found else ""


def _from_npm(text: str) -> str:
    package = json.loads(text)
    found = {key: package[key] for key in ("type", "jest", "mocha", "ava", "imports") if key in package}
    found |= {key: value for key, value in package.get("scripts", {}).items() if "test" in key}
    return json.dumps(found, sort_keys=True) if found else ""


_SETTINGS_READERS: dict[str, Callable[[str], str]] = {
    "pyproject.toml": _from_toml, "setup.cfg": _from_ini, "tox.ini": _from_ini, "package.json": _from_npm,
    "Makefile": str,
}  # fmt: skip


async def run_tests(
    sandbox: Sandbox,
    worktree: Path,
    *,
    runner: Runner,
    command: str | None = None,
    timeout_seconds: float = 300,
    only: Sequence[str] = (),
    stand_ins: bool = False,
) -> TestRun:
    """Run the tests of a checkout, or `only` some files or ids of it. Never raises for anything the tests do.

    `command` is the repository's own (None: the runner's default); runner `pytest` wants `[python -m] pytest …` and
    runner `node` wants `node … --test …`, because results come from a reporter that is put into them. Runner
    `exit-code` has one test, `suite`, and ignores `only`. With `stand_ins`, names that a test file imports and the
    code does not have are there and raise NotImplementedError when they are used (pytest only): a test of something
    that is still to be written then fails where it uses it, and a test that uses nothing passes.
    Raises ConfigError for a command that does not fit its runner, and what the sandbox raises.
    """
    bounds = {"worktree": worktree, "timeout_seconds": timeout_seconds}
    only = [f"./{name}" if name.startswith("-") else name for name in only]
    if runner == "pytest":
        arguments = _pytest_arguments(command or PYTEST)
        if only:  # in place of the files and folders that the command names
            arguments = [word for word in arguments if word.startswith("-") or not (worktree / word).exists()]
        arguments = [*arguments, *only]
        run = await _run_pytest(sandbox, arguments, stand_ins, bounds)
        if run.exit_code == _PYTEST_USAGE and not run.results:  # most often addopts that name a missing plugin
            run = await _run_pytest(sandbox, ["-o", "addopts=", *arguments], stand_ins, bounds)
        return run
    if runner == "node":
        return await _run_node(sandbox, command or NODE, only, bounds)
    return await _run_suite(sandbox, command, bounds)


def _fault(result: CommandResult, bounds: dict[str, Any]) -> str | None:
    if result.timed_out:
        return f"The tests did not finish within {bounds['timeout_seconds']:g} s."
    if result.flooded:
        return "The tests wrote more output than is allowed and were stopped."
    return None


async def _run_suite(sandbox: Sandbox, command: str | None, bounds: dict[str, Any]) -> TestRun:
    if command is None:
        return TestRun(command="", exit_code=0, error="The repository has no test command: set `test` in WORKFLOW.md.")
    done = await sandbox.run(command, **bounds)
    error = _fault(done, bounds)
    if not error and (done.exit_code in (126, 127, 137, 139) or done.exit_code < 0):
        error = f"The test command did not run or was killed (exit code {done.exit_code})."
    results = {"suite": TestResult(outcome="failed" if done.exit_code else "passed")}
    return TestRun(
        command=command, exit_code=done.exit_code, results={} if error else results, seconds=done.seconds,
        timed_out=done.timed_out, output=trim_failure(done.output), error=error,
    )  # fmt: skip


# ---- pytest -----------------------------------------------------------------------------------------------------

PYTEST_RECORDER = r'''
import hashlib
import hmac
import json
import os
import signal
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path.cwd()


def take_orders():
    orders = json.loads(sys.stdin.buffer.read())
    with suppress(OSError):
        os.ftruncate(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return orders


def make_importable():
    """`src` layouts and flat ones, here and in child processes."""
    sys.dont_write_bytecode = True
    folders = [str(path) for path in (ROOT / "src", ROOT / "lib", ROOT) if path.is_dir()]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)


class StandIn:
    """A name the code does not have yet."""

    __test__ = False

    def __init__(self, name):
        self.__dict__["name"] = name

    def __call__(self, *arguments, **named):
        raise NotImplementedError(f"{self.name} does not exist")

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise NotImplementedError(f"{self.name}.{attribute} does not exist")


def supply(error):
    """Put a stand-in where an import missed a module or a name; False when that is not what went wrong."""
    if not isinstance(error, ImportError) or not error.name:
        return False
    if isinstance(error, ModuleNotFoundError):
        module = types.ModuleType(error.name)
        module.__path__ = []
        module.__getattr__ = lambda name: StandIn(f"{error.name}.{name}")
        sys.modules[error.name] = module
        return True
    missing = str(error).removeprefix("cannot import name '").split("'")[0]
    module = sys.modules.get(error.name)
    if module is None or not missing.isidentifier() or hasattr(module, missing):
        return False
    setattr(module, missing, StandIn(missing))
    return True


class Recorder:
    def __init__(self, stand_ins, each_seconds):
        self.stand_ins, self.each_seconds = stand_ins, each_seconds
        self.results, self.failed = {}, 0

    def pytest_sessionfinish(self, session):
        self.failed = session.testsfailed  # pytest's own count

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self):
        """A test that loops for ever fails alone and does not take the whole run with it."""
        signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail(f"no end after {self.each_seconds:g} s"))
        signal.setitimer(signal.ITIMER_REAL, self.each_seconds)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(self, collector):
        for _ in range(20 if self.stand_ins and isinstance(collector, pytest.Module) else 0):
            try:
                collector.obj  # the import; kept by pytest when it succeeds
                return
            except collector.CollectError as error:
                if not supply(error.__cause__):
                    return
            except BaseException:
                return  # pytest meets it again and reports it

    def pytest_collectreport(self, report):
        if report.failed:
            self.keep(report.nodeid, "failed", "collect")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.keep(report.nodeid, report.outcome, report.when)

    def pytest_exception_interact(self, call, report):
        error = call.excinfo.value
        if isinstance(error, pytest.Collector.CollectError):
            error = error.__cause__ or error
        inside = [Path(entry.path) for entry in call.excinfo.traceback if Path(entry.path).is_relative_to(ROOT)]
        frames = [str(path.relative_to(ROOT)) for path in inside if "site-packages" not in path.parts]
        message = str(error)[:500].encode(errors="replace").decode()
        found = {"exception": type(error).__name__, "message": message, "frames": frames[-20:]}
        self.keep(report.nodeid, "failed", getattr(report, "when", "collect")).update(found)

    def keep(self, name, outcome, phase):
        known = self.results.setdefault(name, {"outcome": outcome, "phase": phase})
        if outcome == "failed" != known["outcome"]:
            known.update(outcome=outcome, phase=phase)
        return known


def write(path, key, body):
    mark = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(mark + b"\n" + body)


def main():
    orders = take_orders()
    key, process = orders.pop("key").encode(), os.getpid()
    make_importable()
    recorder, ending, crash = Recorder(orders["stand_ins"], orders["each_seconds"]), 3, None
    try:
        ending = int(pytest.main(orders["arguments"], plugins=[recorder]))
    except BaseException as error:
        crash = f"{type(error).__name__}: {error}"[:300]
    if os.getpid() == process:  # not the child of a test that forked
        body = {"ending": ending, "crash": crash, "failed": recorder.failed, "results": recorder.results}
        write(ROOT / orders["results"], key, json.dumps(body).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending)  # at once: no handler of the repository runs after the results are written


main()
'''
"""Runs pytest inside the sandbox and writes what it reported.

What it does about tests that would lie: the order comes by stdin and is gone from there before any code of the
repository runs; outcomes are kept in memory and written once, with a mark (HMAC) whose key was in the order; it then
leaves at once, so that `atexit` handlers find nothing to change; `os._exit` and `sys.exit` leave no results at all.
A conftest.py can still alter reports: changes to it are a violation (`tasks.evidence`).
"""
_PYTEST_USAGE = 4
_PYTEST_ENDINGS = {
    2: "The test session was interrupted.",
    3: "pytest failed inside itself.",
    4: "pytest could not start.",
}


def _pytest_arguments(command: str) -> list[str]:
    words: list[str] = []
    with suppress(ValueError):
        words = [] if re.search(r"[|&;<>`$\n]", command) else shlex.split(command)
    if words[:1] in (["pytest"], ["py.test"]):
        return words[1:]
    if words[:1] in (["python"], ["python3"]) and words[1:3] == ["-m", "pytest"]:
        return words[3:]
    raise ConfigError(
        f"test command {command!r} is not of the form `python -m pytest …`: change `test` in WORKFLOW.md, "
        "or set `test_runner: exit-code`"
    )


async def _run_pytest(sandbox: Sandbox, arguments: Sequence[str], stand_ins: bool, bounds: dict[str, Any]) -> TestRun:
    """Run PYTEST_RECORDER in the sandbox. Its orders, with name and key of the results, come by stdin."""
    key, name = secrets.token_hex(32), f".results-{secrets.token_hex(16)}"
    options = ["-p", "no:cacheprovider", "--tb=short", "--color=no", "--continue-on-collection-errors", "--maxfail=0"]
    orders = {
        "key": key, "results": name, "arguments": [*options, *arguments], "stand_ins": stand_ins,
        "each_seconds": bounds["timeout_seconds"] * TEST_SHARE,
    }  # fmt: skip
    # -I: no module of the repository can take the place of one that pytest or the recorder imports.
    done = await sandbox.run(["python", "-I", "-c", PYTEST_RECORDER], stdin=json.dumps(orders).encode(), **bounds)
    report = _authentic(_take(bounds["worktree"] / name), key)
    error = _fault(done, bounds)
    if error is None and report is None:
        error = f"The tests ended without results (exit code {done.exit_code}): the process was killed or left early."
    report = report or _Report(ending=done.exit_code)
    return TestRun(
        command=shlex.join(["python", "-m", "pytest", *arguments]), exit_code=report.ending, results=report.results,
        seconds=done.seconds, timed_out=done.timed_out, output=trim_failure(done.output),
        error=error or report.crash or _PYTEST_ENDINGS.get(report.ending) or _contradiction(report),
    )  # fmt: skip


class _Report(Frozen):
    """What PYTEST_RECORDER writes. `crash` is an exception that left pytest itself, `failed` is pytest's own count."""

    ending: int
    crash: str | None = None
    failed: int = 0
    results: dict[str, TestResult] = {}


def _contradiction(report: _Report) -> str | None:
    if report.failed and not any(result.outcome == "failed" for result in report.results.values()):
        return f"pytest counted {report.failed} failed test(s) and none was reported: the results were tampered with."
    return None


def _authentic(raw: bytes | None, key: str) -> _Report | None:
    """The results when they carry the key's mark: a file that something else wrote or changed is no result."""
    mark, _, body = (raw or b"").partition(b"\n")
    if not hmac.compare_digest(mark, hmac.new(key.encode(), body, "sha256").hexdigest().encode()):
        return None
    try:
        return _Report.model_validate_json(body)
    except ValidationError:  # an outcome that only a plugin knows
        return None


def _take(path: Path) -> bytes | None:
    """Read and remove a results file that hostile code may have replaced by a link, a pipe or something huge."""
    raw = None
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_RESULT_BYTES:
            raw = file.read(MAX_RESULT_BYTES)
    with suppress(OSError):
        path.unlink()
    return raw


# ---- node -------------------------------------------------------------------------------------------------------

NODE_REPORTER = """
import { relative } from 'node:path';
export default async function* report(source) {
  const open = new Map();
  for await (const { type, data } of source) {
    if (!['test:start', 'test:pass', 'test:fail'].includes(type)) continue;
    const file = relative(process.cwd(), data.file ?? '');
    const names = open.get(file) ?? [];
    open.set(file, names);
    names.length = data.nesting;
    names[data.nesting] = data.name;
    if (type === 'test:start' || data.details?.type === 'suite') continue;
    const whole = data.nesting === 0 && data.name === data.file;
    const error = data.details?.error, cause = error?.cause ?? error;
    const skipped = data.skip !== undefined || data.todo !== undefined;
    yield JSON.stringify({
      id: whole ? file : [file, ...names].join(' > '),
      outcome: skipped ? 'skipped' : type === 'test:pass' ? 'passed' : 'failed',
      phase: whole ? 'collect' : 'call',
      exception: error?.failureType === 'testTimeoutFailure' ? 'Timeout' : String(cause?.code ?? cause?.name ?? ''),
      message: String(cause?.message ?? cause ?? '').slice(0, 500),
    }) + '\\n';
  }
  yield '"end"\\n';
}
"""
"""Runs in node's own runner process, apart from the processes of the test files, and ends with a line of its own."""

NODE_GUARD = """
const quit = process.reallyExit.bind(process);
process.exit = (code) => quit(code || process.exitCode || 97);
"""
"""Loaded before each test file: leaving with `process.exit(0)` in the middle of the tests is a failure."""


async def _run_node(sandbox: Sandbox, command: str, only: Sequence[str], bounds: dict[str, Any]) -> TestRun:
    name = f".results-{secrets.token_hex(16)}"
    arguments = _node_arguments(command, sorted({test.split(" > ")[0] for test in only}))
    reporters = [
        f"--import={_module(NODE_GUARD)}", f"--test-reporter={_module(NODE_REPORTER)}",
        f"--test-reporter-destination={name}", "--test-reporter=spec", "--test-reporter-destination=stdout",
        f"--test-timeout={int(bounds['timeout_seconds'] * TEST_SHARE * 1000)}",
    ]  # fmt: skip
    # A shell, so that patterns of the repository's own command mean what they mean to npm.
    done = await sandbox.run(f"exec node {shlex.join(reporters)} {arguments}", **bounds)
    results = _node_results(_take(bounds["worktree"] / name) or b"")
    error = _fault(done, bounds)
    if error is None and results is None:
        error = f"node's test runner ended without results (exit code {done.exit_code})."
    return TestRun(
        command=f"node {arguments}", exit_code=done.exit_code, results=results or {}, seconds=done.seconds,
        timed_out=done.timed_out, output=trim_failure(done.output), error=error,
    )  # fmt: skip


def _node_results(raw: bytes) -> dict[str, TestResult] | None:
    """The reporter's lines; None when the last one is missing or any is not its own. Of equal names the worst counts."""
    *lines, end = raw.splitlines() or [b""]
    results: dict[str, TestResult] = {}
    try:
        for line in lines:
            found = json.loads(line)
            name = str(found.pop("id"))
            if name not in results or found.get("outcome") == "failed":
                results[name] = TestResult(**found)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return results if end == b'"end"' else None


def _node_arguments(command: str, files: Sequence[str]) -> str:
    match = re.match(r"\s*node\s+([^;&|<>`$\n]*--test\b[^;&|<>`$\n]*)$", command)
    if match is None:
        raise ConfigError(
            f"test command {command!r} is not of the form `node --test …`: change `test` in WORKFLOW.md, "
            "or set `test_runner: exit-code`"
        )
    if not files:
        return match[1].strip()
    flags = [word for word in match[1].split() if word.startswith("-")]
    return f"{' '.join(flags)} {shlex.join(files)}"


def _module(source: str) -> str:
    return f"data:text/javascript,{quote(source)}"


# ---- what people and models read --------------------------------------------------------------------------------

_FOREIGN = re.compile(r"/site-packages/|/lib/python3|<frozen |node:internal|node_modules/|^\s*at .*\(node:|_pytest/")
_FRAME = re.compile(r'^\s*File "|^\S+:\d+: in |^\s+at ')
_NOISE = re.compile(
    r"^[\s~^]*[~^][\s~^]*$|^[.FEsxX]+\s+\[\s*\d+%\]$|^(platform|rootdir|plugins|cachedir|configfile|asyncio): |^=+ test session"
    r"|^ℹ (suites|cancelled|skipped|todo|duration_ms)|^\s*(duration_ms|generatedMessage)"
)


def trim_failure(output: str, limit: int = 1400) -> str:
    """The part of a test output that helps: assertion lines and the frames in the repository, at most `limit` characters.

    Caret lines, object addresses, progress dots and frames of the runner and of libraries are dropped
    (notes/llm.md: a 1.5B model gains from it).
    """
    kept: list[str] = []
    foreign = False
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).splitlines():
        line = re.sub(r" at 0x[0-9a-fA-F]+", "", line).rstrip()
        if _FRAME.match(line):
            foreign = _FOREIGN.search(line) is not None
        elif not line.startswith((" ", "\t")):
            foreign = False
        if foreign or _NOISE.match(line) or (not line and kept[-1:] == [""]):
            continue
        kept.append(line)
    return shorten("\n".join(kept).strip(), limit)


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters: the first and the last part around a line that says how much is missing."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 5
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[-tail:]}"
