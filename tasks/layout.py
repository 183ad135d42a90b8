"""Whether the plan of a whole application holds together: its files, who writes each of them, and what waits for what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from infra.git import covers
from infra.test_runners import is_test_path, settings_of_tests
from tasks import services
from tasks.models import Brief

if TYPE_CHECKING:
    from tasks.planning import DraftPlan, DraftUnit

LEAST_EFFORT = 3
"""Of a whole application, whatever the architect thinks: from here on several coders work side by side."""
MOST_UNITS = 8
_PATH = re.compile(r"[\w@+-][\w.@+ -]*(/[\w@+-][\w.@+ -]*)*|\.[\w-]+")


def layout_mistakes(brief: Brief, draft: DraftPlan) -> list[str]:
    """What is wrong with the plan, one sentence each; empty when nothing is. Blocks: git."""
    if draft.rejection is not None:
        return ["The application is not there yet, so there is work to do: plan it."]
    there = set(services.mirror(brief.repository).paths(brief.repository.base_sha))
    laid = list(dict.fromkeys(path_of(entry) for entry in draft.file_layout))
    written = dict.fromkeys([*(path for path in laid if path not in there), *(f for u in draft.units for f in u.files)])
    found = [*_missing_parts(draft), *_unusable(written, brief.policy.protected_paths)]
    found += _clashing({*laid, *there})
    return [*found, *_unassigned(draft.units, laid, there), *_out_of_order(draft.units)]


def path_of(entry: str) -> str:
    """The path that a line of `file_layout` begins with: `app/store.py: keeps the tasks`."""
    return re.split(r":|\s+[-(]|\s{2,}", entry.strip(), maxsplit=1)[0].strip("` ")


def _missing_parts(draft: DraftPlan) -> Iterator[str]:
    for name in ("file_layout", "api_surface", "acceptance"):
        if not getattr(draft, name):
            yield f"`{name}` is empty: those who write tests and code know nothing else."
    if len(draft.units) > MOST_UNITS:
        yield f"There are {len(draft.units)} units, more than {MOST_UNITS}: join some."


def _unusable(written: Iterable[str], protected: Sequence[str]) -> Iterator[str]:
    for path in written:
        if not _PATH.fullmatch(path) or ".." in path.split("/"):
            yield f"{path!r} is no path inside the repository."
        elif any(covers(rule, path) for rule in protected):
            yield f"{path!r} is protected and cannot be written: leave it out."
        elif is_test_path(path) or _sets_tests(path):
            yield f"{path!r} belongs to the tests, which are not yours: leave it out."


def _sets_tests(path: str) -> bool:
    """Whether the file decides how tests are run, whatever is in it."""
    return settings_of_tests(path, "") is not None or PurePosixPath(path).name == "Makefile"


def _clashing(paths: Collection[str]) -> Iterator[str]:
    for path in sorted(paths):
        if any(str(folder) in paths for folder in PurePosixPath(path).parents):
            yield f"A folder of {path!r} is also planned as a file."


def _unassigned(units: Sequence[DraftUnit], laid: Sequence[str], there: Collection[str]) -> Iterator[str]:
    owners = Counter(path for unit in units for path in dict.fromkeys(unit.files))
    for path, times in owners.items():
        if times > 1:
            yield f"{path!r} belongs to {times} units: give it to one, and let the others depend on that."
        if path not in laid and path not in there:
            yield f"{path!r} is of a unit, and `file_layout` does not name it."
    for path in laid:
        if path not in owners and path not in there:
            yield f"No unit writes {path!r}."
    for unit in units:
        if not unit.files:
            yield f"The unit {unit.id!r} has no files."


def _out_of_order(units: Sequence[DraftUnit]) -> Iterator[str]:
    ids = [unit.id for unit in units]
    for name in sorted({each for each in ids if ids.count(each) > 1}):
        yield f"Two units are called {name!r}."
    waiting = {unit.id: set(unit.depends_on) for unit in units}
    for name, needed in waiting.items():
        for unknown in sorted(needed - waiting.keys()):
            yield f"The unit {name!r} depends on {unknown!r}, which is none."
    while ready := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in ready}
    if waiting:
        yield f"These units wait for each other in a circle: {', '.join(map(repr, waiting))}."
