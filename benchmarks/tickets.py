"""The benchmark's tickets: reading them, making the repository an agent starts from, and deciding whether it solved one.

Hidden tests leave this package only for a tree that no agent sees.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from infra.errors import ConfigError
from infra.llm import Frozen
from infra.sandbox import Sandbox, open_sandbox
from infra.settings import load_settings
from infra.test_runners import Runner, TestRun, run_tests

ROOT = Path(__file__).parent
TEST_SECONDS = 120.0
_SOURCE_SUFFIXES = (".py", ".js", ".mjs", ".json")
_MAX_SOURCE_BYTES = 1 << 20
_GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Benchmark",
    "GIT_AUTHOR_EMAIL": "benchmark@localhost",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "Benchmark",
    "GIT_COMMITTER_EMAIL": "benchmark@localhost",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


class BenchTicket(Frozen):
    """A ticket and what only the benchmark knows of it (`kind`, `difficulty`, `bug`: from about.yaml, for no agent).

    `kind`: a test of the repository fails and is quoted (`failing-test`), the text says input, result and expectation
    (`example`), or a user tells of it (`prose`). `text` is ticket.md as a folder board reads it.
    """

    key: str
    title: str
    body: str
    labels: tuple[str, ...]
    repository: str
    text: str
    kind: Literal["failing-test", "example", "prose"]
    difficulty: Literal["easy", "medium", "hard"]
    bug: str

    @property
    def folder(self) -> Path:
        return ROOT / "tickets" / self.key

    @property
    def correct(self) -> Path:
        """The repository without the bug."""
        return ROOT / "repositories" / self.repository

    @property
    def runner(self) -> Runner:
        return "node" if (self.correct / "package.json").is_file() else "pytest"

    @property
    def test_command(self) -> str:
        """What a developer of the repository types to run its tests."""
        return {"node": "node --test", "pytest": "python -m pytest -q"}[self.runner]

    def hidden_tests(self) -> tuple[str, ...]:
        """Paths of the hidden tests as they will lie in the repository."""
        return _files(self.folder / "hidden")

    def ordinary_tests(self) -> tuple[str, ...]:
        """Paths of the repository's own test files."""
        return tuple(path for path in _files(self.correct) if re.search(r"(^|/)test_[^/]*\.py$|\.test\.js$", path))


def load_tickets(keys: tuple[str, ...] = ()) -> list[BenchTicket]:
    """All tickets in the order of their keys, or only `keys`. Raises ConfigError for an unknown or malformed one."""
    known = sorted(path.name for path in (ROOT / "tickets").iterdir() if path.is_dir())
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ConfigError(f"no such benchmark ticket: {unknown!r}; the keys are {known[0]!r} to {known[-1]!r}")
    return [_load(key) for key in known if not keys or key in keys]


def _load(key: str) -> BenchTicket:
    folder = ROOT / "tickets" / key
    text = (folder / "ticket.md").read_text()
    parts = re.fullmatch(r"---\n(.*?)\n---\n\n?(.*)", text, re.DOTALL)
    if parts is None:
        raise ConfigError(f"{folder / 'ticket.md'} must begin with front matter between two lines of '---'")
    front = yaml.safe_load(parts[1])
    about = yaml.safe_load((folder / "about.yaml").read_text())
    return BenchTicket(key=key, body=parts[2], text=text, **front, **about)


def materialise(ticket: BenchTicket, folder: Path) -> Path:
    """Make `folder` a git repository with the bug in it: branch `main`, one commit, the same id every time.

    Raises ConfigError when `folder` holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{str(folder)!r} is not empty: choose a new folder for the repository of {ticket.key!r}")
    _plant(ticket, folder)
    commit_all(folder, f"{ticket.repository}: current state")
    return folder


def commit_all(folder: Path, message: str) -> None:
    """Make a folder of files a git repository: branch `main`, one commit, the same id every time."""
    _git(folder, "init", "--quiet", "--initial-branch=main", ".")
    _git(folder, "add", "--all", "--force")
    _git(folder, "commit", "--quiet", "--message", message)


def _plant(ticket: BenchTicket, folder: Path) -> None:
    _copy_all(ticket.correct, folder)
    _git(folder, "apply", "--whitespace=nowarn", str(ticket.folder / "bug.patch"))


def _git(folder: Path, *arguments: str) -> None:
    # The ceiling keeps `git apply` from looking at a repository that the folder happens to lie in.
    environment = {**_GIT_ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(folder.absolute().parent)}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ConfigError(f"git {arguments[0]} failed in {str(folder)!r}: {done.stderr.strip()!r:.500}")


def solved(ticket: BenchTicket, checkout: Path) -> bool:
    """Whether all hidden and all ordinary tests pass with the sources of `checkout`, a folder nobody trusts.

    Blocks for some seconds; call it with `asyncio.to_thread` from a loop. Raises what the sandbox raises.
    """
    return passes(asyncio.run(judge(ticket, checkout, open_sandbox(load_settings()))), ticket)


async def judge(ticket: BenchTicket, checkout: Path, sandbox: Sandbox) -> TestRun:
    """Run hidden and ordinary tests in a tree that takes only source files from `checkout`.

    Tests, configuration and everything else outside the source folders are those of the base, so that neither changed
    tests nor a planted conftest.py count.
    """
    with tempfile.TemporaryDirectory(prefix="darkfactory-judge-") as name:
        tree = Path(name) / "tree"
        _plant(ticket, tree)
        for folder in _source_folders(ticket.correct):
            shutil.rmtree(tree / folder)
            take_sources(checkout / folder, tree / folder)
        return await _run_with_hidden_tests([ticket], tree, sandbox)


async def judge_correct(tickets: Sequence[BenchTicket], sandbox: Sandbox) -> TestRun:
    """Run the hidden tests of tickets of one repository, and its ordinary ones, on the repository without any bug."""
    with tempfile.TemporaryDirectory(prefix="darkfactory-judge-") as name:
        tree = Path(name) / "tree"
        _copy_all(tickets[0].correct, tree)
        return await _run_with_hidden_tests(tickets, tree, sandbox)


async def _run_with_hidden_tests(tickets: Sequence[BenchTicket], tree: Path, sandbox: Sandbox) -> TestRun:
    """Add the hidden tests to a tree of the tickets' one repository and run all its tests."""
    for ticket in tickets:
        _copy_all(ticket.folder / "hidden", tree)
    runner, command = tickets[0].runner, tickets[0].test_command
    return await run_tests(sandbox, tree, runner=runner, command=command, timeout_seconds=TEST_SECONDS)


def passes(run: TestRun, ticket: BenchTicket) -> bool:
    """Whether a run of `judge` proves the fix: nothing failed or was skipped, and every test file had its say."""
    if run.error or run.exit_code or any(result.outcome != "passed" for result in run.results.values()):
        return False
    heard = {file_of_test(name) for name in run.results}
    return heard >= {*ticket.hidden_tests(), *ticket.ordinary_tests()}


def file_of_test(name: str) -> str:
    """The file of a test id: `tests/test_a.py::test_b` or `tests/a.test.js > b`."""
    return re.split(r"::| > ", name, maxsplit=1)[0]


def take_sources(source: Path, target: Path) -> None:
    """Copy regular source files; links, pipes, large files and conftest.py stay behind."""
    for path in _files(source):
        wanted = path.endswith(_SOURCE_SUFFIXES) and Path(path).name != "conftest.py"
        if wanted and (source / path).lstat().st_size <= _MAX_SOURCE_BYTES:
            _copy(source / path, target / path)


def texts(folder: Path) -> Mapping[str, str]:
    """The UTF-8 files of a tree that nobody trusts, without `.git`: what a diff is made of."""
    found = {}
    for path in _files(folder):
        if (folder / path).lstat().st_size <= _MAX_SOURCE_BYTES:
            found[path] = (folder / path).read_bytes().decode(errors="replace")
    return found


def _source_folders(repository: Path) -> list[str]:
    return sorted({Path(path).parts[0] for path in _files(repository) if "/" in path} - {"tests"})


def _files(folder: Path) -> tuple[str, ...]:
    """Relative paths of regular files, sorted, without `.git` and caches; links are not followed."""
    return tuple(sorted(_walk(folder))) if not folder.is_symlink() else ()


def _walk(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in (".git", "__pycache__", ".pytest_cache", "node_modules")]
        for name in names:
            path = Path(place, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(folder).as_posix()


def _copy_all(source: Path, target: Path) -> None:
    for path in _files(source):
        _copy(source / path, target / path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
