"""What is read, founded and refused before a whole application is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.git import clone_branch, found_repository, refuse_other_folder
from infra.test_runners import TestResult, detect_policy
from tasks.building import MAX_SPECIFICATION_BYTES, Specification, first_files, read_specification, stack_of
from tasks.evidence import is_red
from tasks.layout import layout_mistakes
from tasks.models import Brief, Greenfield, Policy, Repository, TestReport, Ticket
from tasks.planning import DraftPlan
from tasks.policy import read_policy
from tests.shop import fingerprint, git, make_repository

SPEC = "# Todo List!\n\nA Python package that keeps tasks.\n"


def read(path: Path, name: str | None = None) -> Specification:
    return read_specification(path, name, None, Greenfield())


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf---\n", "is empty"),
        (b"# A\0B\n", "is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text"),
        (b"a" * (MAX_SPECIFICATION_BYTES + 1), f"more than {MAX_SPECIFICATION_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_specification_is_refused_with_what_to_do(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "SPEC.md"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=said):
        read(path)


def test_what_is_no_file_is_refused_and_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in {"missing.md": "No such file", "": "Is a directory", "pipe": "is not a file"}.items():
        with pytest.raises(ConfigError, match=said):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["", "Todo", "../up", "a--b", "-a", "a/b", "a" * 41, "tödo"])
def test_a_name_that_is_no_repository_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "SPEC.md").write_text(SPEC)
    with pytest.raises(ConfigError, match="--name"):
        read(tmp_path / "SPEC.md", name)


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("SPEC.md", SPEC, "todo-list"),
        ("shop-floor.md", "No heading.\n", "shop-floor"),
        ("SPEC.md", "# 计算器\n", "spec"),
        ("1.md", "# 1\n", "application"),
    ],
)
def test_an_application_is_called_as_its_heading_or_its_file(tmp_path: Path, file: str, text: str, name: str) -> None:
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = read(tmp_path / file)
    assert (found.name, found.text) == (name, text)


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("A thing.", "python"),
        ("A Python tool, tested with pytest. Not JavaScript.", "python"),
        ("A Node.js service in JavaScript.", "node"),
        ("Python behind, JavaScript in front.", "python"),
    ],
)
def test_the_stack_is_what_the_text_speaks_of(text: str, stack: str) -> None:
    assert stack_of(text) == stack


@pytest.mark.parametrize(("stack", "runner"), [("python", "pytest"), ("node", "node")])
def test_a_new_repository_begins_with_specification_rules_and_how_it_is_tested(
    tmp_path: Path, stack: str, runner: str
) -> None:
    """And a second founding, also of one that went on since, changes nothing."""
    specification = Specification(name="todo", text="# Todo\n\n```\ndata 5\n```\nÄ\n", stack=stack)  # type: ignore[arg-type]
    bare = found_repository(tmp_path / "forge" / "repo.git", first_files(specification), "Begin")
    sha = git(bare.path, "rev-parse", "HEAD").strip()
    assert (bare.read(sha, "SPEC.md") or b"").decode() == specification.text
    policy = read_policy(bare, sha, detect_policy)
    assert policy.test_runner == runner
    assert {"SPEC.md", "WORKFLOW.md", *Policy().protected_paths} == set(policy.protected_paths)
    before = fingerprint(bare.path)
    found_repository(bare.path, {"SPEC.md": "other"}, "Begin again")
    assert fingerprint(bare.path) == before


def test_a_founding_that_was_killed_before_its_commit_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "repo.git"
    found_repository(path, {"SPEC.md": "a"}, "Begin")
    git(path, "update-ref", "-d", "refs/heads/main")
    (path / "refs" / "heads" / "main.lock").touch()
    assert found_repository(path, {"SPEC.md": "b"}, "Begin").read("refs/heads/main", "SPEC.md") == b"b"


def test_a_clone_is_made_once_and_never_over_other_files(tmp_path: Path) -> None:
    bare = found_repository(tmp_path / "repo.git", {"SPEC.md": "a"}, "Begin").path
    clone_branch(bare, "main", tmp_path / "out")
    (tmp_path / "out" / "SPEC.md").write_text("mine")
    clone_branch(bare, "main", tmp_path / "out")
    assert (tmp_path / "out" / "SPEC.md").read_text() == "mine"
    (tmp_path / "other").mkdir()
    refuse_other_folder(tmp_path / "other", bare)
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        clone_branch(bare, "main", tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["file"]


# ---- the plan ---------------------------------------------------------------------------------------------------


@pytest.fixture
def brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brief:
    place = make_repository(tmp_path / "begun", {"SPEC.md": SPEC, "lib/old.py": ""})
    sha = git(place, "rev-parse", "HEAD").strip()
    repository = Repository(name="begun", mirror=str(place / ".git"), remote="", base_branch="main", base_sha=sha)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    return Brief(
        ticket=Ticket(key="t", title="t", body="b", state="todo"),
        repository=repository,
        policy=Policy(protected_paths=(".git*", "SPEC.md")),
        baseline=TestReport(command="", exit_code=0),
    )


UNITS: list[dict[str, object]] = [
    {"id": "a", "title": "A", "files": ["app/a.py"]},
    {"id": "b", "title": "B", "files": ["app/b.py", "lib/old.py"], "depends_on": ["a"]},
]
GOOD: dict[str, object] = {
    "summary": "s", "api_surface": ["app/a.py: f()"], "acceptance": ["f() is 1"], "units": UNITS,
    "file_layout": ["app/a.py: does a", "`app/b.py` - does b", "SPEC.md: as it is"],
}  # fmt: skip


def test_a_plan_that_holds_together_has_no_mistakes(brief: Brief) -> None:
    assert layout_mistakes(brief, DraftPlan.model_validate(GOOD)) == []


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ({"rejection": {"kind": "already_done", "reason": "It is there."}}, "is not there yet"),
        ({"api_surface": []}, "`api_surface` is empty"),
        ({"acceptance": []}, "`acceptance` is empty"),
        ({"file_layout": ["app/a.py", "app/b.py", "app/c.py"]}, "No unit writes 'app/c.py'"),
        ({"file_layout": ["app/a.py"]}, "'app/b.py' is of a unit, and `file_layout` does not name it"),
        ({"file_layout": ["app/a.py", "app/b.py", "app"]}, "A folder of 'app/a.py' is also planned as a file"),
        ({"units": [UNITS[0], {**UNITS[1], "depends_on": ["x"]}]}, "depends on 'x', which is none"),
        ({"units": [{**UNITS[0], "depends_on": ["b"]}, UNITS[1]]}, "wait for each other in a circle: 'a', 'b'"),
        ({"units": [UNITS[0], {**UNITS[1], "files": ["app/b.py", "app/a.py"]}]}, "'app/a.py' belongs to 2 units"),
        ({"units": [*UNITS, {"id": "c", "title": "C"}]}, "The unit 'c' has no files"),
        ({"units": [*UNITS, UNITS[0]]}, "Two units are called 'a'"),
        ({"units": [{"id": f"u{n}", "title": "t", "files": [f"f{n}.py"]} for n in range(9)]}, "more than 8"),
        *(
            ({"units": [UNITS[0], {**UNITS[1], "files": ["app/b.py", path]}]}, said)
            for path, said in {
                "../up.py": "is no path inside the repository",
                "/etc/passwd": "is no path inside the repository",
                "SPEC.md": "is protected",
                ".gitignore": "is protected",
                "tests/test_a.py": "belongs to the tests",
                "conftest.py": "belongs to the tests",
                "package.json": "belongs to the tests",
                "Makefile": "belongs to the tests",
            }.items()
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_named(brief: Brief, instead: dict[str, object], said: str) -> None:
    found = layout_mistakes(brief, DraftPlan.model_validate({**GOOD, **instead}))
    assert any(said in each for each in found), found


def test_a_module_that_node_cannot_find_yet_is_red_and_a_missing_package_is_not() -> None:
    def failed(message: str) -> TestResult:
        return TestResult(outcome="failed", exception="ERR_MODULE_NOT_FOUND", message=message)

    assert is_red(failed("Cannot find module '/workspace/src/a.mjs' imported from /workspace/test/a.test.mjs"))
    assert not is_red(failed("Cannot find module '/workspace/node_modules/x/a.js' imported from /workspace/a.test.mjs"))
    assert not is_red(failed("Cannot find package 'express' imported from /workspace/test/a.test.mjs"))
