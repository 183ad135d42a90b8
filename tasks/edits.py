"""What a coder begins with and what it hands out, whoever does the editing."""

from __future__ import annotations

from collections.abc import Collection

from infra.git import Mirror
from infra.test_runners import is_test_path
from tasks.models import Change, Feedback, TestChange


def laid_files(tests: tuple[TestChange, ...], feedback: Feedback, given: tuple[Change, ...]) -> dict[str, str | None]:
    """The files over the base commit that a coder begins with: the best changes so far, those of the units it builds on,
    and the tests."""
    laid = {path: text for change in (*feedback.changes, *given) for path, text in change.files.items()}
    return laid | {path: text for t in tests for path, text in t.files.items()}


def edited_files(mirror: Mirror, start: str, head: str, laid: Collection[str]) -> dict[str, str | None]:
    """What a coder hands out: path -> text or None for deleted. `start` is the commit it began with, or the one below
    that; of the files that were `laid` over it, those that are no tests belong to the change, edited or not.
    """
    changed = {path for f in mirror.changed(start, head) for path in (f.previous, f.path) if path is not None}
    own = {path: mirror.read(head, path) for path in sorted(changed - set(laid))}
    own |= {path: mirror.read(head, path) for path in laid if not is_test_path(path)}
    return {path: raw.decode(errors="replace") if raw is not None else None for path, raw in own.items()}
