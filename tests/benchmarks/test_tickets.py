"""The benchmark's own honesty: sound tickets, bases that do not vary, and a judge that is hard to please by tricks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.checks import complaints
from benchmarks.tickets import BenchTicket, judge, load_tickets, materialise, passes
from infra.errors import ConfigError
from infra.sandbox import Limits, Sandbox, open_sandbox
from infra.settings import Settings

TICKETS = load_tickets()
REPOSITORIES = sorted({ticket.repository for ticket in TICKETS})


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return open_sandbox(Settings(home=tmp_path / "home", command_timeout_seconds=Limits().timeout_seconds))


def ticket(key: str) -> BenchTicket:
    return load_tickets((key,))[0]


@pytest.mark.integration
@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.slow
async def test_every_ticket_is_sound(repository: str, sandbox: Sandbox) -> None:
    """The patch applies, hidden tests fail with the bug only, ordinary ones as the kind of the ticket says."""
    assert await complaints([one for one in TICKETS if one.repository == repository], sandbox) == []


def test_the_set_is_as_large_and_as_mixed_as_the_readme_says() -> None:
    kinds = [one.kind for one in TICKETS]
    assert len(TICKETS) == 42
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"failing-test": 14, "example": 15, "prose": 13}
    assert len(REPOSITORIES) == 7


def test_a_base_has_one_commit_and_the_same_id_every_time(tmp_path: Path) -> None:
    heads = []
    for name in ("first", "second"):
        folder = materialise(ticket("timespan-01"), tmp_path / name)
        done = subprocess.run(["git", "log", "--format=%H %an"], cwd=folder, capture_output=True, text=True, check=True)
        heads.append(done.stdout)
    assert heads[0] == heads[1]
    assert heads[0].count("\n") == 1


def test_a_base_tells_nothing_about_hidden_tests_or_the_bug(tmp_path: Path) -> None:
    for one in TICKETS:
        folder = materialise(one, tmp_path / one.key)
        names = [path.name for path in folder.rglob("*") if ".git" not in path.parts]
        assert not [name for name in names if "hidden" in name or name in ("about.yaml", "bug.patch", "ticket.md")]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        materialise(ticket("timespan-01"), tmp_path)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="timespan-99"):
        load_tickets(("timespan-99",))


async def judged(one: BenchTicket, checkout: Path, sandbox: Sandbox) -> bool:
    return passes(await judge(one, checkout, sandbox), one)


async def test_the_right_fix_counts_whatever_else_was_left_behind(tmp_path: Path, sandbox: Sandbox) -> None:
    one = ticket("timespan-04")
    checkout = materialise(one, tmp_path / "checkout")
    source = checkout / "timespan/relative.py"
    source.write_text(source.read_text().replace("difference <= 7", "difference < 7"))
    (checkout / "notes.txt").write_text("scratch")
    assert await judged(one, checkout, sandbox)


@pytest.mark.parametrize("trick", ["conftest", "tests", "shadow", "exit", "link"])
async def test_tricks_do_not_count(trick: str, tmp_path: Path, sandbox: Sandbox) -> None:
    """An untouched bug with planted hooks, deleted tests, a false pytest, an early exit, or a link out of the tree."""
    one = ticket("timespan-04")
    checkout = materialise(one, tmp_path / "checkout")
    hook = "def pytest_collection_modifyitems(items):\n    items.clear()\n"
    match trick:
        case "conftest":
            for place in ("conftest.py", "tests/conftest.py", "timespan/conftest.py"):
                (checkout / place).write_text(hook)
        case "tests":
            for path in checkout.glob("tests/*.py"):
                path.unlink()
        case "shadow":
            (checkout / "pytest.py").write_text("raise SystemExit(0)\n")
            (checkout / "sitecustomize.py").write_text("import os\nos._exit(0)\n")
        case "exit":
            with (checkout / "timespan/__init__.py").open("a") as file:
                file.write("\nimport os\nos._exit(0)\n")
        case "link":
            (checkout / "timespan/relative.py").unlink()
            (checkout / "timespan/relative.py").symlink_to(one.correct / "timespan/relative.py")
    assert not await judged(one, checkout, sandbox)
