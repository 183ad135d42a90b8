"""The two kinds of change that no test can be red for: documentation, and tests of code that is right already. The ticket only
says which of them it asks for; whether a change is one is read from the diff and from what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import get_args

from infra.git import ChangedFile
from infra.mutants import Mutant, mutants
from infra.syntax import Function, functions
from infra.test_runners import TestResult, is_test_path
from tasks.intents import Intent
from tasks.models import Evidence, Exemption, Plan

EXEMPT = get_args(Exemption)
MOST_EDITS = 20
"""Small edits of the code that new tests are tried on. The first few are operators, constants and names that change results."""

_SUFFIXES = {".md", ".rst", ".adoc", ".txt"}
_FOLDERS = {"doc", "docs", "documentation"}
_KNOWN = {
    "readme", "changelog", "changes", "history", "news", "authors", "contributors", "faq", "install", "roadmap", "upgrading",
    "security", "support", "code_of_conduct",
}  # fmt: skip
_RULES = {
    "agents", "claude", "gemini", "contributing", "workflow", "skill", "copilot-instructions",
    "license", "licence", "copying", "notice",
}  # fmt: skip
"""Not prose about the program: agents and factories obey them, or lawyers read them."""
_INPUTS = ("requirements", "constraints", "cmakelists", "robots", "llms")
_CONTRADICTIONS = {"AssertionError", "Failed", "ERR_ASSERTION"}
"""How pytest, unittest and node say that a result is wrong; `Failed` is `pytest.raises` that met no error."""
_WORDS = re.compile(r"[^\W\d]\w*")


def is_documentation(path: str) -> bool:
    """Prose for people: in the root, below `docs`, or of a well-known name (README, CHANGELOG, ...) anywhere.

    Not: rule files, licences, what builds read (`requirements.txt`, `CMakeLists.txt`), hidden folders, what feeds tests, and
    other text inside of packages, which may be a template or a prompt.
    """
    place = PurePosixPath(path.casefold())
    stem = place.name.partition(".")[0]
    hidden = any(part.startswith(".") for part in place.parts)
    if place.suffix not in _SUFFIXES or hidden or is_test_path(path) or stem in _RULES or stem.startswith(_INPUTS):
        return False
    in_root = len(place.parts) == 1 and place.suffix != ".txt"
    return in_root or place.parts[0] in _FOLDERS or stem in _KNOWN


def needs_no_testers(asked: Intent, plan: Plan) -> bool:
    """Whether all that the plan names is of the kind asked for, so that a tester could find nothing red."""
    fits = {"docs": is_documentation, "tests": is_test_path}.get(asked)
    return fits is not None and all(unit.files and all(map(fits, unit.files)) for unit in plan.units)


def shortfall(asked: Exemption, evidence: Evidence, changed: Sequence[ChangedFile]) -> str | None:
    """Why the change is not of the kind asked for, in one sentence, or None when it is."""
    if evidence.before.error:
        return "The tests cannot be run on the base commit, so nothing shows that they still pass."
    return _not_documents(evidence, changed) if asked == "docs" else _not_new_tests(evidence, changed)


def _not_documents(evidence: Evidence, changed: Sequence[ChangedFile]) -> str | None:
    run = {name.partition("::")[0] for report in (evidence.before, evidence.after) for name in report.tests}
    wrong = [
        f.path for f in changed if not (_plainly(f, "added", "modified") and is_documentation(f.path)) or f.path in run
    ]
    if wrong:
        return f"Without such a test a change may only add and edit documents, and not {_named(wrong)}."
    found = next((f for f in evidence.findings if f.new), None)
    return f"Documents may bring no finding: {found.message} ({found.path}:{found.line})" if found else None


def _not_new_tests(evidence: Evidence, changed: Sequence[ChangedFile]) -> str | None:
    wrong = [f.path for f in changed if not (_plainly(f, "added") and is_test_path(f.path))]
    if wrong:
        return f"Without such a test a change may only add test files, and not touch {_named(wrong)}."
    added = new_tests(evidence)
    if not added:
        return "No test is new."
    idle = sorted(added - evidence.after.ids("passed"))
    return f"New test(s) fail or are skipped: {_named(idle)}." if idle else None


def _plainly(file: ChangedFile, *statuses: str) -> bool:
    return file.status in statuses and file.mode == "100644"


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def new_tests(evidence: Evidence) -> set[str]:
    """Ids that the change brings; none where they have no names of their own (a bare exit code)."""
    return set(evidence.after.tests) - set(evidence.before.tests)


def contradicts(result: TestResult | None) -> bool:
    """Whether the test itself says that a result is wrong. Code that breaks under it says nothing about the test."""
    return (
        result is not None and result.outcome == "failed" and result.phase == "call"
        and result.exception in _CONTRADICTIONS and all(map(is_test_path, result.frames))
    )  # fmt: skip


def small_edits(
    sources: Mapping[str, str], tests: Sequence[str], executed: Mapping[str, frozenset[int]]
) -> list[Mutant]:
    """At most `MOST_EDITS` edits of the functions that the tests (texts) name, likeliest first; else of all that they execute.

    `sources` is path -> text; `executed` path -> lines, empty where that is unknown: then only names tell.
    """
    words = {word for text in tests for word in _WORDS.findall(text)}
    run = {path: text for path, text in sources.items() if path in executed or not executed}
    found = {path: functions(path, text) for path, text in run.items()}
    named = {path: [f for f in each if f.name in words] for path, each in found.items()}
    made = _edits(run, named, executed) or (_edits(run, found, executed) if executed else [])
    return sorted(made, key=lambda edit: edit.cost)[:MOST_EDITS]


def _edits(
    sources: Mapping[str, str], targets: Mapping[str, list[Function]], executed: Mapping[str, frozenset[int]]
) -> list[Mutant]:
    return [
        edit for path, each in targets.items() for edit in mutants(path, sources[path], each, MOST_EDITS, executed.get(path))
    ]  # fmt: skip
