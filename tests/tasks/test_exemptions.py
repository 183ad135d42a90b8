"""Which plans and paths are documentation or tests and nothing else."""

from __future__ import annotations

import pytest

from infra.test_runners import TestResult
from tasks.exemptions import contradicts, is_documentation, needs_no_testers
from tasks.intents import Intent
from tasks.models import Plan, WorkUnit


@pytest.mark.parametrize(
    "path", ["README.md", "Notes.MD", "docs/a/b.rst", "doc/install.txt", "pkg/README.de.md", "CHANGELOG.txt", "a.adoc"]
)
def test_prose_for_people_is_documentation(path: str) -> None:
    assert is_documentation(path)


@pytest.mark.parametrize(
    "path",
    ["agents.md", "CLAUDE.local.md", "docs/CONTRIBUTING.md", "LICENSE.md", "requirements.txt", "docs/requirements.txt",
     "constraints-dev.txt", "docs/CMakeLists.txt", "robots.txt", "app/prompt.md", "data/words.txt", "tests/data/README.md",
     ".github/x.md", "docs/.hidden/x.md", "docs/conf.py", "README", "docs/x.html"],
)  # fmt: skip
def test_what_programs_agents_and_lawyers_read_is_not(path: str) -> None:
    assert not is_documentation(path)


@pytest.mark.parametrize(
    ("asked", "files", "none"),
    [
        ("docs", ("README.md",), True),
        ("docs", ("README.md", "shop.py"), False),
        ("docs", (), False),
        ("tests", ("tests/test_a.py",), True),
        ("tests", ("shop.py",), False),
        ("bug", ("README.md",), False),
    ],
)
def test_testers_are_spared_where_all_that_is_planned_is_of_the_kind(
    asked: Intent, files: tuple[str, ...], none: bool
) -> None:
    """A bug whose title begins with `Document` is planned in code, and keeps its testers."""
    assert (
        needs_no_testers(asked, Plan(summary="", effort=2, units=(WorkUnit(id="u1", title="", files=files),))) is none
    )


def test_only_the_test_itself_contradicts() -> None:
    wrong = TestResult(outcome="failed", exception="AssertionError", frames=("tests/test_a.py",))
    assert contradicts(wrong)
    assert contradicts(wrong.model_copy(update={"exception": "ERR_ASSERTION", "frames": ()}))
    for other in (
        {"exception": "TypeError"}, {"frames": ("tests/test_a.py", "shop.py")}, {"phase": "collect"}, {"outcome": "passed"},
    ):  # fmt: skip
        assert not contradicts(wrong.model_copy(update=other))
    assert not contradicts(None)
