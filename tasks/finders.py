"""What is wrong with a commit, found by tools and by counting: tests, linters, scanners, git's history, the code index.

No model, no opinion, and nothing here writes anywhere. What the repository brings runs in the sandbox.
"""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from infra.code_index import CodeIndex, Place
from infra.git import Mirror
from infra.housekeeping import Merged
from infra.scanners import ScanFinding, scan
from infra.syntax import is_source
from infra.test_runners import is_test_path
from tasks import services
from tasks.evidence import run_baseline
from tasks.models import Frozen, Policy, Repository, TestReport

MAX_DEFINITIONS = 50_000
MAX_TEXT_BYTES = 64 << 20
MAX_FILE_BYTES = 512 << 10
OLD_DAYS = 30
"""Age from which a note in the code counts as forgotten."""
LONG_LINES = 80
BRANCHES = 15
"""A function with more lines, or more ways through it, is worth simplifying."""
WORTH_LINES = 5
"""Shorter functions need no test of their own."""
CHANGELOGS = ("CHANGELOG.md", "CHANGES.md", "HISTORY.md", "CHANGELOG.rst", "CHANGES.rst")
MOST_ENTRIES = 40
_BUG_RULES = re.compile(
    r"invalid-syntax|E9\d\d|F50\d|F52\d|F601|F602|F63\d|F70\d|F81\d|F82\d"
    r"|B00[3568]|B01[2-8]|B02[0-356]|B03[0125]|B909"
)
"""ruff's rules that mean a bug, not a style."""
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_NOTE = re.compile(r"(?:#|//|/\*|^\s*\*)\s*(TODO|FIXME|XXX|HACK)\b[\s:(-]*(.{0,200})")
_WORD = re.compile(r"[^\W\d]\w*")


class Found(Frozen):
    """One thing that is wrong. `subject` names it at its `path` without line numbers: together they are its identity.

    `name` is the code's own word for it, where there is one; the larger `weight` is, the sooner it should be mended.
    """

    kind: str
    subject: str
    path: str
    line: int = 0
    name: str = ""
    title: str
    what: str
    evidence: str = ""
    acceptance: str
    weight: float = 1.0


class Sighted(Frozen):
    """What finders saw of a commit. `notes` say what it could not look at, and why: not looked at is not clean."""

    base_sha: str
    found: tuple[Found, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Look:
    """One look at the base branch of a repository. `key` names its checkouts; the caller holds them."""

    repository: Repository
    mirror: Mirror
    policy: Policy
    key: str
    notes: list[str] = field(default_factory=list)
    _suites: list[TestReport] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return self.repository.base_sha

    @cached_property
    def places(self) -> list[Place]:
        """Every definition of the commit that is not vendored or generated."""
        return CodeIndex(self.mirror).symbols(self.sha, "*", MAX_DEFINITIONS)

    @cached_property
    def texts(self) -> dict[str, str]:
        """All files that are text, as far as MAX_TEXT_BYTES go; what is left out is noted."""
        blobs = self.mirror.blobs(self.sha)
        sizes = dict(zip(blobs, self.mirror.sizes(list(blobs.values())), strict=True))
        chosen, total = [], 0
        for path in sorted(blobs):
            if sizes[path] <= MAX_FILE_BYTES and total + sizes[path] <= MAX_TEXT_BYTES:
                chosen.append(path)
                total += sizes[path]
        if len(chosen) < len(blobs):
            self.notes.append(f"{len(blobs) - len(chosen)} large file(s) were not read")
        return {path: raw.decode(errors="replace") for path, raw in self.mirror.read_all(self.sha, chosen).items() if b"\0" not in raw[:8000]}  # fmt: skip

    async def suites(self, count: int) -> list[TestReport]:
        """Runs of the repository's own tests, each in a fresh checkout."""
        while len(self._suites) < count:
            report = await run_baseline(
                self.mirror, services.sandbox(), services.worktrees(), self.key, self.policy, self.sha
            )
            self._suites.append(report)
        return self._suites[:count]

    def excerpt(self, path: str, line: int, lines: int = 2) -> str:
        """Some lines around one, with their numbers."""
        text = self.texts.get(path, "").splitlines()
        first = max(line - lines, 1)
        return "\n".join(f"{number:5} {each}" for number, each in enumerate(text[first - 1 : line + lines], first))

    def around(self, path: str, line: int) -> str:
        """Qualified name of the innermost definition that a line is in, else ""."""
        inside = [p for p in self.places if p.path == path and p.start_line <= line <= p.end_line]
        return max(inside, key=lambda p: p.start_line).qualified_name if inside else ""


# ---- tests ------------------------------------------------------------------------------------------------------


async def failing_tests(look: Look) -> list[Found]:
    """Tests of the base branch that fail twice, and those that do not end twice in the same way."""
    if look.policy.test_runner in (None, "exit-code"):
        (only,) = await look.suites(1)
        look.notes += [f"the tests say nothing by name: {only.error}"] if only.error else []
        return [_failing(look, name, only) for name in sorted(only.ids("failed"))]
    first, second = await look.suites(2)
    if first.error or second.error:
        look.notes.append(f"the tests give no evidence: {first.error or second.error}")
        return []
    if not first.tests:
        look.notes.append(f"the tests give no evidence: `{first.command}` ran none")
    both = first.ids("failed") & second.ids("failed")
    unsure = (first.ids("failed") & second.ids("passed")) | (first.ids("passed") & second.ids("failed"))
    output = first if first.ids("failed") else second
    return [_failing(look, n, first) for n in sorted(both)] + [_flaky(look, n, output) for n in sorted(unsure)]


def _failing(look: Look, name: str, report: TestReport) -> Found:
    return Found(
        kind="failing-test", subject=name, path=_file_of(look, name), name=_last(name),
        title=f"Test fails on {look.repository.base_branch}: {name}",
        what=f"The repository's own test `{name}` fails on the untouched base branch.",
        evidence=f"$ {report.command}\n{report.output}",
        acceptance=f"`{name}` passes, and no test was removed or weakened for it.", weight=100,
    )  # fmt: skip


def _flaky(look: Look, name: str, report: TestReport) -> Found:
    return Found(
        kind="flaky-test", subject=name, path=_file_of(look, name), name=_last(name),
        title=f"Test is flaky: {name}",
        what=f"Of two runs of the same commit, `{name}` passed in one and failed in the other.",
        evidence=f"$ {report.command}\n{report.output}",
        acceptance=f"`{name}` ends in the same way however often it runs.", weight=80,
    )  # fmt: skip


async def skipped_tests(look: Look) -> list[Found]:
    """Tests that the repository has and does not run."""
    (report,) = await look.suites(1)
    if report.error:
        look.notes.append(f"the tests give no evidence: {report.error}")
        return []
    return [
        Found(
            kind="skipped-test", subject=name, path=_file_of(look, name), name=_last(name), title=f"Test is skipped: {name}",
            what=f"The test `{name}` is there and is not run.",
            acceptance=f"`{name}` runs and passes, or it is gone and the change says why.", weight=2,
        )
        for name in sorted(report.ids("skipped"))
    ]  # fmt: skip


def _file_of(look: Look, name: str) -> str:
    path = re.split(r"::| > ", name, maxsplit=1)[0]
    return path if path in look.texts else ""


def _last(name: str) -> str:
    return re.sub(r"\[.*", "", re.split(r"::| > ", name)[-1])


# ---- scanners ---------------------------------------------------------------------------------------------------


async def lint_bugs(look: Look) -> list[Found]:
    """Lint rules that mean bugs."""
    found = [
        f for f in await _scanned(look) if f.tool == "ruff" and _BUG_RULES.fullmatch(f.rule) and not _is_fixture(f)
    ]
    return _grouped(look, found, "Likely bug", "The linter no longer reports it there, and a test shows the right behaviour.", 50)  # fmt: skip


def _is_fixture(finding: ScanFinding) -> bool:
    """pytest hands fixtures over by the name they are imported under, which looks like a second definition."""
    return finding.rule == "F811" and is_test_path(finding.path)


async def security(look: Look) -> list[Found]:
    """Dangerous calls outside of tests, and secrets. A secret itself is never shown."""
    scanned = await _scanned(look)
    calls = [
        f for f in scanned
        if f.tool == "bandit" and f.rule != "scan-failed" and f.severity != "low" and not is_test_path(f.path)
    ]  # fmt: skip
    secrets = [f for f in scanned if f.tool == "secrets"]
    done = "The call is safe for every input that can reach it; a mark that silences the scanner is no answer."
    gone = "The secret is out of the code and read from the environment; whoever owns it is told to revoke it."
    return _grouped(look, secrets, "Secret in the code", gone, 90) + _grouped(look, calls, "Dangerous call", done, 60)


async def _scanned(look: Look) -> list[ScanFinding]:
    paths = sorted({place.path for place in look.places} | {p for p in look.texts if is_source(p)})
    paths += sorted(path for path in look.texts if path not in paths)
    with look.mirror.worktree(services.worktrees(), look.key, "scan", look.sha) as worktree:
        found = await scan(services.sandbox(), worktree.path, paths)
    look.notes += [f"{f.path or 'files'} not scanned: {f.message}" for f in found if f.rule == "scan-failed"][:5]
    return found


def _grouped(look: Look, found: Iterable[ScanFinding], words: str, acceptance: str, weight: float) -> list[Found]:
    """One for each rule and definition: the same mistake twice in one function is one piece of work."""
    groups: dict[tuple[str, str, str], list[ScanFinding]] = {}
    for each in found:
        groups.setdefault((each.rule, each.path, look.around(each.path, each.line)), []).append(each)
    return [_of_group(look, key, group, words, acceptance, weight) for key, group in groups.items()]


def _of_group(
    look: Look, key: tuple[str, str, str], group: list[ScanFinding], words: str, acceptance: str, weight: float
) -> Found:
    (rule, path, inside), first = key, group[0]
    hidden = first.tool == "secrets"
    shown = [f"{f.tool} {f.rule} {f.path}:{f.line} {f.message}" for f in group[:10]]
    shown += [] if hidden else ["", look.excerpt(path, first.line)]
    return Found(
        kind=f"{first.tool}-{rule}", subject=inside or first.fingerprint, path=path, line=first.line,
        name=inside.rpartition(".")[2],
        title=f"{words} in {path}{f', {inside}' if inside else ''}: {first.message.split(chr(10))[0][:80]} ({rule})",
        what=f"{first.tool} reports {rule}: {first.message}", evidence="\n".join(shown), acceptance=acceptance,
        weight=weight + {"high": 9, "medium": 5, "low": 0}[first.severity],
    )  # fmt: skip


# ---- notes and code that nothing uses ----------------------------------------------------------------------------


async def old_notes(look: Look) -> list[Found]:
    """TODO, FIXME and their like that have stood for OLD_DAYS and longer, by git's history; the oldest weigh most."""
    found: list[Found] = []
    for path, text in look.texts.items():
        lines = {n: note for n, line in enumerate(text.splitlines(), 1) if (note := _NOTE.search(line[:1000]))}
        if is_source(path) and lines:
            written = look.mirror.written_at(look.sha, path, sorted(lines))
            found += filter(None, (_note(look, path, n, note, written.get(n)) for n, note in lines.items()))
    return found


def _note(look: Look, path: str, line: int, note: re.Match[str], written: int | None) -> Found | None:
    days = int((time.time() - written) // 86_400) if written is not None else 0
    said = " ".join(note[2].strip(" */)").split())
    if days < OLD_DAYS or len(said) < 4:
        return None
    return Found(
        kind="old-note", subject=f"{note[1]} {said}".casefold(), path=path, line=line, name=look.around(path, line).rpartition(".")[2],
        title=f"{note[1]} in {path}: {said[:80]}", what=f"A {note[1]} has stood in the code for {days} days.",
        evidence=look.excerpt(path, line, 4),
        acceptance="What the note asks for is done and tested, or it is no longer wanted; either way the note is gone.",
        weight=days / 365 + (2 if note[1] == "FIXME" else 0),
    )  # fmt: skip


async def dead_code(look: Look) -> list[Found]:
    """Definitions that only their own file or package can see, and whose names stand nowhere else in the repository."""
    mentioned: Counter[str] = Counter()
    for text in look.texts.values():
        mentioned.update(_WORD.findall(text))
    return [
        _dead(look, p) for p in look.places if _is_hidden(p) and mentioned[p.name] == 1 and not _is_decorated(look, p)
    ]


def _is_decorated(look: Look, place: Place) -> bool:
    above = look.texts.get(place.path, "").splitlines()[: place.start_line - 1]
    return bool(above) and above[-1].lstrip().startswith(("@", ")"))


def _is_hidden(place: Place) -> bool:
    """Nobody outside can call it. Methods are left out: a framework may call them by name."""
    if place.kind not in ("function", "class") or is_test_path(place.path):
        return False
    if place.path.endswith(".py"):
        return place.name.startswith("_") and not place.name.startswith("__")
    if place.path.endswith(".go"):
        return place.name[:1].islower() and place.name not in ("main", "init")
    return not re.search(r"\b(export|exports|module)\b", place.signature)


def _dead(look: Look, place: Place) -> Found:
    lines = place.end_line - place.start_line + 1
    return Found(
        kind="dead-code", subject=place.qualified_name, path=place.path, line=place.start_line, name=place.name,
        title=f"Nothing uses {place.qualified_name} in {place.path}",
        what=f"`{place.qualified_name}` is private, and its name stands nowhere else in the repository.",
        evidence=look.excerpt(place.path, place.start_line, 3),
        acceptance="It is removed, and all tests still pass; or it is used as it was meant to be.", weight=1 + lines / 50,
    )  # fmt: skip


# ---- functions ----------------------------------------------------------------------------------------------------


async def untested(look: Look) -> list[Found]:
    """Public functions whose name stands in no test file; those with most branches weigh most."""
    tests = [text for path, text in look.texts.items() if is_test_path(path)]
    if not tests:
        look.notes.append("the repository has no test files")
        return []
    named = {word for text in tests for word in _WORD.findall(text)}
    branches = all_branches(look.texts)
    return [_untested(look, p, branches.get((p.path, p.start_line), 1)) for p in look.places if _wants_a_test(p, named)]


def _wants_a_test(place: Place, named: set[str]) -> bool:
    return (
        place.kind in ("function", "method")
        and not place.name.startswith("_")
        and place.name not in named
        and place.name != "main"
        and not is_test_path(place.path)
        and place.end_line - place.start_line + 1 >= WORTH_LINES
    )


def _untested(look: Look, place: Place, branches: int) -> Found:
    return Found(
        kind="untested", subject=place.qualified_name, path=place.path, line=place.start_line, name=place.name,
        title=f"No test mentions {place.qualified_name} of {place.path}",
        what=f"No test file of the repository names `{place.name}`, which has {branches} way(s) through it.",
        evidence=look.excerpt(place.path, place.start_line, 6),
        acceptance=f"Tests of `{place.qualified_name}` that fail when its result is wrong, for each way through it.",
        weight=5 + branches,
    )  # fmt: skip


async def tangled(look: Look) -> list[Found]:
    """Functions of LONG_LINES lines or BRANCHES ways through them, and more."""
    branches = all_branches(look.texts)
    return [
        _tangled(look, place, branches.get((place.path, place.start_line), 0))
        for place in look.places
        if place.kind in ("function", "method") and not is_test_path(place.path)
        and (place.end_line - place.start_line >= LONG_LINES or branches.get((place.path, place.start_line), 0) >= BRANCHES)
    ]  # fmt: skip


def _tangled(look: Look, place: Place, branches: int) -> Found:
    lines = place.end_line - place.start_line + 1
    counted = f"{lines} lines" + (f" and {branches} ways through it" if branches else "")
    return Found(
        kind="tangled", subject=place.qualified_name, path=place.path, line=place.start_line, name=place.name,
        title=f"Simplify {place.qualified_name} in {place.path}",
        what=f"`{place.qualified_name}` has {counted}; from {LONG_LINES} lines or {BRANCHES} ways on a function is hard to change.",
        evidence=look.excerpt(place.path, place.start_line, 6),
        acceptance="It does the same in smaller functions with names of their own; every test passes unchanged.",
        weight=branches + lines / 10,
    )  # fmt: skip


# ---- documentation ------------------------------------------------------------------------------------------------


async def unwritten(look: Look) -> list[Found]:
    """Merged changes of the factory that the changelog names neither by ticket nor by title: one finding for all of them.

    It is known by the oldest of them, so there is no second one until that is written down. What came before a ticket of this
    chore that was merged was looked at there, and that ticket's own change is none to write down.
    """
    path = next((p for p in CHANGELOGS if p in look.texts), None)
    if path is None:
        look.notes.append(f"there is no changelog ({', '.join(CHANGELOGS)})")
        return []
    merged = await asyncio.to_thread(services.housekeeping().merged, look.repository.name)
    own = await asyncio.to_thread(services.housekeeping().made, "docs", look.repository.name)
    since = max((own[each.ticket] for each in merged if each.ticket in own), default=_LONG_AGO)
    missing = [e for e in merged if e.at > since and e.ticket not in own and not _is_written(look.texts[path], e)]
    return [_unwritten(look, path, missing)] if missing else []


def _is_written(text: str, change: Merged) -> bool:
    said = " ".join(text.casefold().split())
    named = re.search(rf"(?<![\w-]){re.escape(change.ticket.casefold())}(?![\w-])", said)
    return named is not None or " ".join(change.title.casefold().split()) in said


def _unwritten(look: Look, path: str, missing: list[Merged]) -> Found:
    lines = [f"{each.at:%Y-%m-%d} {each.ticket}: {each.title} ({each.url})" for each in missing[:MOST_ENTRIES]]
    return Found(
        kind="unwritten", subject=missing[0].ticket, path=path,
        title=f"Bring {path} up to date: {len(missing)} merged change(s) are missing",
        what=f"{path} on {look.repository.base_branch} does not mention changes that were merged.", evidence="\n".join(lines),
        acceptance="Each of them that matters to users has an entry in the file's own style; the rest is named in the change.",
        weight=len(missing),
    )  # fmt: skip


def all_branches(texts: Mapping[str, str]) -> dict[tuple[str, int], int]:
    """Ways through each Python function, by path and first line. A file that cannot be parsed has none."""
    return {
        (path, line): count for path, text in texts.items() if path.endswith(".py") for line, count in _branches(text)
    }


def _branches(text: str) -> Iterator[tuple[int, int]]:
    """McCabe's count (A Complexity Measure, 1976): one, and one more for each decision. Inner functions count alone."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, 1 + sum(map(_decisions, _own(node)))


def _own(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
            yield from _own(child)


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.comprehension(ifs=ifs):
            return 1 + len(ifs)
        case (
            ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While()
            | ast.ExceptHandler() | ast.match_case()
        ):  # fmt: skip
            return 1
        case _:
            return 0
