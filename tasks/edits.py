"""What a coder begins with and what it hands out, whoever does the editing."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager

from infra.git import Mirror, Worktree
from infra.test_runners import is_test_path, settings_of_tests
from tasks import services
from tasks.asking import Asker
from tasks.models import Brief, Change, Feedback, TestChange, WorkUnit


def coder_checkout(brief: Brief, unit: WorkUnit, asker: Asker, session: str = "") -> AbstractContextManager[Worktree]:
    """A worktree of the base commit for one coder's work on one unit; what an earlier run of its `session` left is in it."""
    name = f"coder-{asker.candidate}-{asker.round}-{unit.id}"
    base = brief.repository.base_sha
    return services.mirror(brief.repository).worktree(services.worktrees(), brief.ticket.key, name, base, session)


def laid_files(tests: tuple[TestChange, ...], feedback: Feedback, given: tuple[Change, ...]) -> dict[str, str | None]:
    """The files over the base commit that a coder begins with: the best changes so far, those of the units it builds on,
    and the tests."""
    laid = {path: text for change in (*feedback.changes, *given) for path, text in change.files.items()}
    return laid | {path: text for t in tests for path, text in t.files.items()}


def coders_tests(mirror: Mirror, base_sha: str, feedback: Feedback, given: tuple[Change, ...]) -> set[str]:
    """The test files that coders added before: work of theirs, unlike a tester's. Edits of existing tests and of how tests
    are run are not kept."""
    laid = {path: text for change in (*feedback.changes, *given) for path, text in change.files.items()}
    made = {path for path, text in laid.items() if is_test_path(path) and settings_of_tests(path, text) is None}
    return made - set(mirror.paths(base_sha)) if made else made


def edited_files(
    mirror: Mirror, start: str, head: str, laid: Collection[str], added: Collection[str] = ()
) -> dict[str, str | None]:
    """What a coder hands out: path -> text or None for deleted. `start` is the commit it began with, or the one below
    that; of the files that were `laid` over it, those that are no tests belong to the change, edited or not, and so do the
    tests in `added` (`coders_tests`).
    """
    laid = [path for path in laid if path not in added]
    changed = {path for f in mirror.changed(start, head) for path in (f.previous, f.path) if path is not None}
    own = {path: mirror.read(head, path) for path in sorted(changed - set(laid))}
    own |= {path: mirror.read(head, path) for path in laid if not is_test_path(path)}
    own |= {path: mirror.read(head, path) for path in sorted(added)}
    return {path: raw.decode(errors="replace") if raw is not None else None for path, raw in own.items()}
