"""Facts about a commit, measured by the runner in fresh checkouts where no agent ever worked. No opinions.

Every test run gets a checkout of its own, so nothing that one run leaves behind can colour the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from infra import test_runners
from infra.git import ChangedFile, Mirror
from infra.mutants import Mutant
from infra.mutation_runs import executed_lines
from infra.sandbox import Sandbox
from infra.scanners import new_findings, scan
from infra.syntax import is_source
from infra.test_runners import TestResult, TestRun, is_test_path, settings_of_tests, trim_failure
from tasks.exemptions import contradicts, new_tests, shortfall, small_edits
from tasks.hooks import prepared
from tasks.models import Brief, Evidence, Exemption, Finding, Policy, TestChange, TestOutcome, TestReport

_OWN_MISTAKES = {
    "SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError",
    "ReferenceError", "ERR_MODULE_NOT_FOUND", "MODULE_NOT_FOUND",
}  # fmt: skip

MOST_REASONS, REASON_CHARS = 20, 300
"""Of failed tests whose own words a report keeps."""
TRACE_SECONDS, EDITS_SECONDS = 60, 300
"""For finding what new tests execute, and after which no further edit of it is tried."""


async def run_tests(sandbox: Sandbox, worktree: Path, policy: Policy, only: Sequence[str] = ()) -> TestReport:
    """Set a checkout up as the policy says and run its tests, or `only` some files or ids of it.

    Whatever the tests do is in the report. Raises ConfigError when `test` does not fit `test_runner`.
    """
    failure = await _set_up(sandbox, worktree, policy)
    return failure or _report(await _run(sandbox, worktree, policy, only))


async def run_baseline(
    mirror: Mirror, sandbox: Sandbox, worktrees_root: Path, key: str, policy: Policy, base_sha: str
) -> TestReport:
    """The repository's own tests on the untouched base commit. `key` is the ticket's."""
    checkout = mirror.worktree(worktrees_root, key, "baseline", base_sha)
    async with prepared(checkout, policy, sandbox) as worktree:
        return await run_tests(sandbox, worktree.path, policy)


async def red_tests(
    mirror: Mirror, sandbox: Sandbox, worktrees_root: Path, brief: Brief, files: Mapping[str, str]
) -> TestReport:
    """New tests (path -> text) on the base commit. `failed` are exactly the red ones; see `is_red`.

    A test that fails for a reason of its own is `skipped` here, with the reason in `output`. Files that may not be
    test files of a tester give a report with `error`.
    """
    refused = refused_tests(mirror, brief.repository.base_sha, files)
    if refused:
        return TestReport(command="", exit_code=0, error=" ".join(refused))
    report, run = await _Bench(mirror, sandbox, worktrees_root, brief).new_tests(
        brief.repository.base_sha, files, stand_ins=True
    )
    return _only_red(report, run, brief)


async def new_tests_on_base(
    mirror: Mirror, sandbox: Sandbox, worktrees_root: Path, brief: Brief, files: Mapping[str, str]
) -> tuple[TestReport, dict[str, TestResult]]:
    """New tests on the base commit as it is: a name that the code does not have is a mistake of the test."""
    refused = refused_tests(mirror, brief.repository.base_sha, files)
    if refused:
        return TestReport(command="", exit_code=0, error=" ".join(refused)), {}
    bench = _Bench(mirror, sandbox, worktrees_root, brief)
    report, run = await bench.new_tests(brief.repository.base_sha, files, stand_ins=False)
    return report, run.results if run is not None else {}


async def gather_evidence(
    mirror: Mirror,
    sandbox: Sandbox,
    worktrees_root: Path,
    brief: Brief,
    head_sha: str,
    new_tests: Sequence[TestChange],
    *,
    max_files: int,
    max_lines: int,
    allowed_paths: Collection[str] = (),
    asked: Exemption | None = None,
) -> Evidence:
    """All facts about the commit `head_sha` on top of the brief's base commit.

    `allowed_paths` are the test files and test settings that the plan allows to change; results of such tests never
    count as fixed. `asked` is the exemption from the red test that the ticket's kind of work allows; it is granted by what
    the diff is. Raises what the sandbox and git raise; nothing the tests do is an exception.
    """
    started = time.monotonic()
    base_sha = brief.repository.base_sha
    bench = _Bench(mirror, sandbox, worktrees_root, brief)
    changed = mirror.changed(base_sha, head_sha)
    files, refused = _merged(mirror, base_sha, new_tests)
    findings = await bench.findings(base_sha, head_sha, changed)
    after = await bench.suite(head_sha)
    before_new = after_new = None
    if files:
        before_new = _only_red(*await bench.new_tests(base_sha, files, stand_ins=True), brief)
        after_new, _ = await bench.new_tests(head_sha, files, stand_ins=False)
    edited = {name for f in changed if f.status != "added" for name in (f.path, f.previous) if name}
    fixed = _turned_green(brief.baseline, after, edited) | _turned_green(before_new, after_new, ())
    fixed -= await bench.flaky(base_sha, files, fixed)
    evidence = Evidence(
        head_sha=head_sha,
        diff=mirror.diff(base_sha, head_sha),
        files=tuple(f.path for f in changed),
        lines_added=sum(f.added for f in changed),
        lines_removed=sum(f.removed for f in changed),
        before=brief.baseline,
        after=after,
        new_tests_before=before_new,
        new_tests_after=after_new,
        fixed=tuple(sorted(fixed)),
        broken=tuple(sorted(_broken(brief.baseline, after))),
        still_red=tuple(sorted(before_new.ids("failed") - _passing(after_new))) if before_new and after_new else (),
        findings=findings,
        violations=(
            *mirror.violations(
                base_sha,
                head_sha,
                protected_paths=brief.policy.protected_paths,
                max_files=max_files,
                max_lines=max_lines,
            ),
            *_violations_of_tests(mirror, base_sha, head_sha, changed, set(allowed_paths)),
            *refused,
        ),
    )
    granted = await _exemption(bench, evidence, changed, asked)
    return evidence.model_copy(update={**granted, "seconds": time.monotonic() - started})


async def _exemption(
    bench: _Bench, evidence: Evidence, changed: Sequence[ChangedFile], asked: Exemption | None
) -> dict[str, Any]:
    """The fields of the evidence that say whether the change needs no red test; none where something else refuses it."""
    refused = evidence.violations or evidence.broken or evidence.after.error
    if asked is None or evidence.fixed or refused or not changed:
        return {}
    lacks = shortfall(asked, evidence, changed)
    if lacks is not None:
        return {"shortfall": lacks}
    if asked == "docs":
        return {"exemption": asked}
    able = await bench.able_to_fail(evidence.head_sha, new_tests(evidence))
    if not able:
        return {"shortfall": "The new tests stay green whatever is edited in the code that they are about."}
    return {"exemption": asked, "able_to_fail": able}


# ---- runs -------------------------------------------------------------------------------------------------------


class _Bench:
    """Runs for one ticket, each in a fresh checkout named after what it is for, so that they may run at the same time."""

    def __init__(self, mirror: Mirror, sandbox: Sandbox, root: Path, brief: Brief) -> None:
        self.mirror, self.sandbox, self.root = mirror, sandbox, root
        self.key, self.policy = brief.ticket.key, brief.policy

    async def suite(self, sha: str) -> TestReport:
        checkout = self.mirror.worktree(self.root, self.key, f"suite-{sha[:12]}", sha)
        async with prepared(checkout, self.policy, self.sandbox) as worktree:
            return await run_tests(self.sandbox, worktree.path, self.policy)

    async def new_tests(
        self, sha: str, files: Mapping[str, str], *, stand_ins: bool, only: Sequence[str] = ()
    ) -> tuple[TestReport, TestRun | None]:
        """The files written over a commit and only their tests run (or `only`). No run when the set-up failed."""
        digest = hashlib.sha256(json.dumps([sha, dict(files), list(only)], sort_keys=True).encode()).hexdigest()
        checkout = self.mirror.worktree(self.root, self.key, f"tests-{digest[:12]}", sha)
        async with prepared(checkout, self.policy, self.sandbox, files) as worktree:
            failure = await _set_up(self.sandbox, worktree.path, self.policy)
            if failure:
                return failure, None
            run = await _run(self.sandbox, worktree.path, self.policy, only or sorted(files), stand_ins)
            return _report(run), run

    async def flaky(self, base_sha: str, files: Mapping[str, str], fixed: Collection[str]) -> set[str]:
        """Which of the `fixed` tests do not fail on base when they are run there once more (all, when that run fails)."""
        if not fixed:
            return set()
        again, _ = await self.new_tests(base_sha, files, stand_ins=True, only=sorted(set(map(_file_of, fixed))))
        return set(fixed) if again.error else set(fixed) & _passing(again)

    async def able_to_fail(self, sha: str, tests: Collection[str]) -> tuple[str, ...]:
        """Those of the passing tests that the first small edit of the code that any of them contradicts turns red.

        They have to pass once more without it; else they are flaky, and the next edit is tried.
        """
        files, end = sorted(set(map(_file_of, tests))), time.monotonic() + EDITS_SECONDS
        for edit in await self._edits(sha, files):
            report, run = await self.new_tests(sha, {edit.path: edit.text}, stand_ins=False, only=files)
            results = run.results if run is not None and not report.error else {}
            red = {name for name in tests if contradicts(results.get(name))}
            if red:
                again, _ = await self.new_tests(sha, {}, stand_ins=False, only=files)
                red &= again.ids("passed") if not again.error else set()
            if red or time.monotonic() > end:
                return tuple(sorted(red))
        return ()

    async def _edits(self, sha: str, files: Sequence[str]) -> list[Mutant]:
        """What to edit in the code of a commit so that its test files notice."""
        executed = await self._executed(sha, files) if self.policy.test_runner == "pytest" else {}
        paths = [p for p in self.mirror.paths(sha) if is_source(p) and not is_test_path(p)]
        sources = _texts(self.mirror, sha, paths)
        lines = {path: executed[path] for path in sources if path in executed}
        return await asyncio.to_thread(small_edits, sources, list(_texts(self.mirror, sha, files).values()), lines)

    async def _executed(self, sha: str, files: Sequence[str]) -> dict[str, frozenset[int]]:
        """A hint, which the tests could forge: it chooses edits, and runs of their own say what those do."""
        checkout = self.mirror.worktree(self.root, self.key, f"trace-{sha[:12]}", sha)
        async with prepared(checkout, self.policy, self.sandbox) as worktree:
            if await _set_up(self.sandbox, worktree.path, self.policy):
                return {}
            return await executed_lines(self.sandbox, worktree.path, files, seconds=TRACE_SECONDS)

    async def findings(self, base_sha: str, head_sha: str, changed: Sequence[ChangedFile]) -> tuple[Finding, ...]:
        """What the scanners find in the changed files and did not find in them before."""
        renamed = {f.previous or f.path: f.path for f in changed}
        with ExitStack() as stack:
            base = stack.enter_context(self.mirror.worktree(self.root, self.key, f"before-{head_sha[:12]}", base_sha))
            head = stack.enter_context(self.mirror.worktree(self.root, self.key, f"after-{head_sha[:12]}", head_sha))
            before = await scan(self.sandbox, base.path, sorted(renamed))
            after = await scan(self.sandbox, head.path, sorted(renamed.values()))
        before = [f.model_copy(update={"path": renamed.get(f.path, f.path)}) for f in before]
        return tuple(
            Finding(source=f.tool, rule=f.rule, path=f.path, line=f.line, severity=f.severity, message=f.message)
            for f in new_findings(before, after)
            if not (
                f.tool == "bandit" and f.severity == "low" and is_test_path(f.path)
            )  # `assert` in a test is no finding
        )


async def _set_up(sandbox: Sandbox, worktree: Path, policy: Policy) -> TestReport | None:
    """Run `setup`. The network is open for it when the policy says so, and for nothing else. A report when it fails."""
    if policy.setup is None:
        return None
    done = await sandbox.run(
        policy.setup, worktree=worktree, timeout_seconds=policy.timeout_seconds, network=policy.network
    )
    if done.exit_code == 0 and not done.timed_out:
        return None
    return TestReport(
        command=policy.setup, exit_code=done.exit_code, seconds=done.seconds, timed_out=done.timed_out,
        output=trim_failure(done.output), error=f"The setup command {policy.setup!r} failed.",
    )  # fmt: skip


async def _run(
    sandbox: Sandbox, worktree: Path, policy: Policy, only: Sequence[str], stand_ins: bool = False
) -> TestRun:
    return await test_runners.run_tests(
        sandbox, worktree, runner=policy.test_runner or "exit-code", command=policy.test,
        timeout_seconds=policy.timeout_seconds, only=only, stand_ins=stand_ins,
    )  # fmt: skip


def _report(run: TestRun) -> TestReport:
    return TestReport(
        command=run.command, exit_code=run.exit_code, seconds=run.seconds, timed_out=run.timed_out,
        tests={name: result.outcome for name, result in run.results.items()}, output=run.output, error=run.error,
        reasons=_reasons(run.results),
    )  # fmt: skip


def _reasons(results: Mapping[str, TestResult]) -> dict[str, str]:
    """What the first failed tests say, in the order of their ids."""
    failed = sorted(name for name, result in results.items() if result.outcome == "failed")[:MOST_REASONS]
    said = {name: f"{results[name].exception}: {results[name].message}"[:REASON_CHARS] for name in failed}
    return {name: text for name, text in said.items() if text.strip(": \n")}


# ---- what the outcomes mean -------------------------------------------------------------------------------------


def is_red(result: TestResult) -> bool:
    """Whether a failure on the base commit says something about the repository's code.

    Yes when the exception passed through a file of the repository that is no test, when it took too long, and when
    the test itself ran and was contradicted: an assertion, or an error at the place where it uses the code (a missing
    attribute, a wrong number of arguments, a stand-in for a name that does not exist yet, a module of the repository that
    node cannot find there yet). No for what the test got
    wrong by itself: syntax, imports, undefined names, fixtures, a file that cannot be collected.
    """
    if result.outcome != "failed":
        return False
    if result.exception == "Timeout" or any(not is_test_path(frame) for frame in result.frames):
        return True
    return result.phase == "call" and (result.exception not in _OWN_MISTAKES or _awaits_a_module(result))


def _awaits_a_module(result: TestResult) -> bool:
    """node's words for a file that is imported by its path, not for a package that is not installed."""
    missing = re.match(r"Cannot find module '(/[^']+)' imported from ", result.message)
    return missing is not None and "/node_modules/" not in missing[1]


def _only_red(report: TestReport, run: TestRun | None, brief: Brief) -> TestReport:
    """The report with failures that are not red turned into `skipped`, and why at the end of its output.

    A bare exit code can only show that new tests fail when everything passed without them.
    """
    if run is None:
        return report
    suite_was_red = brief.policy.test_runner in (None, "exit-code") and bool(brief.baseline.ids("failed"))
    own = {n: r for n, r in run.results.items() if r.outcome == "failed" and (suite_was_red or not is_red(r))}
    tests: dict[str, TestOutcome] = {**report.tests, **dict.fromkeys(own, "skipped")}
    reasons = [
        f"Fails by itself, so it proves nothing: {n}: {r.exception} {r.message[:200]}".rstrip() for n, r in own.items()
    ]
    return report.model_copy(update={"tests": tests, "output": "\n".join([report.output, *reasons]).strip()})


def _file_of(name: str) -> str:
    return re.split(r"::| > ", name, maxsplit=1)[0]


def _passing(report: TestReport) -> set[str]:
    """Ids that passed, and files in which something passed and nothing failed: such a file could not be loaded before."""
    passed, failed = report.ids("passed"), report.ids("failed")
    return passed | ({_file_of(name) for name in passed} - {_file_of(name) for name in failed})


def _turned_green(before: TestReport | None, after: TestReport | None, edited: Collection[str]) -> set[str]:
    """Failed before and pass now, in files that the change did not edit."""
    if before is None or after is None or before.error or after.error:
        return set()
    return {name for name in before.ids("failed") & _passing(after) if _file_of(name) not in edited}


def _broken(before: TestReport, after: TestReport) -> set[str]:
    """Passed before and do not now: failed, skipped or gone. Empty when the run itself is void; that is said elsewhere."""
    return set() if after.error else before.ids("passed") - after.ids("passed")


# ---- rules ------------------------------------------------------------------------------------------------------


def refused_tests(mirror: Mirror, base_sha: str, files: Mapping[str, str]) -> tuple[str, ...]:
    """Why files may not be a tester's, one sentence each: they replace a file, are no tests, or alter the test run."""
    known = set(mirror.paths(base_sha))
    return tuple(filter(None, (_refusal(path, text, known) for path, text in files.items())))


def _refusal(path: str, text: str, known: Collection[str]) -> str | None:
    if path.startswith(("/", ".git")) or ".." in path.split("/"):
        return f"The new test file {path!r} is not in the repository."
    if path in known:
        return f"The new test file {path!r} would replace a file of the repository."
    if not is_test_path(path):
        return f"The new test file {path!r} is not where tests are."
    if settings_of_tests(path, text) is not None:
        return f"The new test file {path!r} would alter how tests are run."
    return None


def _merged(mirror: Mirror, base_sha: str, changes: Iterable[TestChange]) -> tuple[dict[str, str], tuple[str, ...]]:
    """All testers' files that may be used (the first one of a name), and why others may not."""
    files: dict[str, str] = {}
    refused: list[str] = []
    for change in changes:
        reasons = refused_tests(mirror, base_sha, change.files)
        reasons += tuple(f"Two testers wrote {p!r}." for p, t in change.files.items() if files.get(p, t) != t)
        refused += reasons
        files = {**change.files, **files} if not reasons else files
    return files, tuple(refused)


def _violations_of_tests(
    mirror: Mirror, base_sha: str, head_sha: str, changed: Iterable[ChangedFile], allowed: Collection[str]
) -> tuple[str, ...]:
    """Existing tests that were edited or removed, and changes to how tests are found and run."""
    found = []
    for file in changed:
        before = file.previous or file.path
        if file.path in allowed and before in allowed:
            continue
        if settings_of_tests(before, _text(mirror, base_sha, before)) != settings_of_tests(
            file.path, _text(mirror, head_sha, file.path)
        ):
            found.append(f"The change alters how the tests are run: {file.path!r}.")
        elif file.status != "added" and is_test_path(before):
            verb = "removes" if file.status in ("deleted", "renamed") else "edits"
            found.append(f"The change {verb} an existing test file: {before!r}.")
    return tuple(found)


def _texts(mirror: Mirror, sha: str, paths: Collection[str]) -> dict[str, str]:
    """Those of the files that are UTF-8: editing others would change their other bytes."""
    texts: dict[str, str] = {}
    for path, raw in mirror.read_all(sha, paths).items():
        with suppress(UnicodeDecodeError):
            texts[path] = raw.decode()
    return texts


def _text(mirror: Mirror, sha: str, path: str) -> str | None:
    raw = mirror.read(sha, path)
    return None if raw is None else raw.decode(errors="replace")
