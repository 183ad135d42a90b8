"""A whole application from a specification (T12): what is read, the repository and the ticket that are made of it, and what
is packed at the end. Between them lies the same work as on any ticket (`flows.ticket`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from prefect import task

from infra.errors import ConfigError
from infra.git import Mirror, found_repository
from infra.sections import FolderBoardSection, RepositorySection
from infra.test_runners import detect_policy
from tasks import services
from tasks.agents import coder_agent
from tasks.choosing import BUILD_LABEL
from tasks.holding import fence
from tasks.intake import named_repository, pin
from tasks.layout import LEAST_EFFORT
from tasks.models import Candidate, Frozen, Greenfield, Job, Outcome, Policy, Ticket
from tasks.policy import read_policy
from tasks.seats import level_of

MAX_SPECIFICATION_BYTES = 48_000
"""Fits into an issue of every board, and into every prompt whole."""
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_NAME = 40
ARCHIVE = "application.tar.gz"
NEEDED = {"architect": 1, "tester": LEAST_EFFORT, "coder": LEAST_EFFORT}
"""Roles that a small model cannot fill here, and the effort at which they are asked."""

Stack = Literal["python", "node"]
_STACK_WORDS: Mapping[Stack, re.Pattern[str]] = {
    "python": re.compile(r"\b(python3?|pytest|pip|django|flask|fastapi)\b", re.IGNORECASE),
    "node": re.compile(r"\b(node(\.?js)?|javascript|typescript|npm|es modules?)\b", re.IGNORECASE),
}


class Specification(Frozen):
    """A specification as it was read. `text` is hostile data like every ticket's."""

    name: str
    text: str
    stack: Stack
    limits: Greenfield = Greenfield()


class Place(Frozen):
    """The repository of a build: what `work_ticket` takes, its name, and where its branches go."""

    wanted: str
    name: str
    remote: str


class Built(Frozen):
    """How a build ended; what `darkfactory build --json` prints."""

    name: str
    ticket: str
    repository: str
    """Address of the repository that holds the branch."""
    branch: str | None
    """None: nothing was accepted."""
    archive: str | None
    """Key in the object store: `application/` is the tree, `papers/` what the work on it left."""
    outcome: Outcome


# ---- before anything is made ------------------------------------------------------------------------------------


def read_specification(path: Path, name: str | None, stack: Stack | None, limits: Greenfield) -> Specification:
    """The file's text, the application's name (given, else its heading, else the file's) and its stack.

    Raises ConfigError for what is no readable text file of 1 to `MAX_SPECIFICATION_BYTES` bytes, and for a bad name.
    """
    text = _text_of(path)
    return Specification(name=_name_of(path, text, name), text=text, stack=stack or stack_of(text), limits=limits)


def _text_of(path: Path) -> str:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"the specification {str(path)!r} is not a file; name a Markdown file")
            raw = file.read(MAX_SPECIFICATION_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the specification {str(path)!r} cannot be read: {error.strerror}; correct the path"
        ) from None
    if len(raw) > MAX_SPECIFICATION_BYTES:
        raise ConfigError(
            f"the specification {str(path)!r} has more than {MAX_SPECIFICATION_BYTES} bytes; shorten it, or build it in parts"
        )
    return _checked_text(path, raw)


def _checked_text(path: Path, raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n").strip()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"the specification {str(path)!r} is not UTF-8 text; write it as Markdown")
    if not re.search(r"\w", text):
        raise ConfigError(f"the specification {str(path)!r} is empty; say in it what the application does")
    return f"{text}\n"


def _name_of(path: Path, text: str, given: str | None) -> str:
    if given is not None:
        if not NAME.fullmatch(given) or len(given) > MAX_NAME:
            raise ConfigError(
                f"--name {given!r} is no name for a repository; use up to {MAX_NAME} lower-case letters, digits and dashes"
            )
        return given
    heading = re.search(r"^# +(\S.*)$", text, re.MULTILINE)
    for said in (heading[1] if heading else "", path.stem):
        slug = re.sub(r"[^a-z0-9]+", "-", said.lower())[:MAX_NAME].strip("-")
        if NAME.fullmatch(slug):
            return slug
    return "application"


def stack_of(text: str) -> Stack:
    """What the specification speaks of more often; Python when it does not say."""
    counts = {stack: len(words.findall(text)) for stack, words in _STACK_WORDS.items()}
    return "node" if counts["node"] > counts["python"] else "python"


def require_capable_models() -> None:
    """Raises ConfigError when a role that plans, tests or codes the whole would be a small model's."""
    asked = {role: services.router(level_of(role, effort)) for role, effort in NEEDED.items()}
    if coder_agent() is not None:
        del asked["coder"]
    small = [role for role, model in asked.items() if model.tier == "small"]
    if small:
        raise ConfigError(
            f"`darkfactory build` needs a capable model for {', '.join(small)}, and {asked[small[0]].name!r} is a small one: set "
            "`model: openai/MODEL` or `anthropic/MODEL` in factory.yaml, or a `strong` model and `level: strong` for these roles"
        )


# ---- repository and ticket --------------------------------------------------------------------------------------


@task(name="repository", task_run_name="repository")
async def prepare_repository(specification: Specification, wanted: str | None, board: str) -> Place:
    """The repository that is built in: the `wanted` one, else a new one in home with a first commit. Idempotent.

    Everything that can be wrong with it or with the board shows here, before there is a ticket. Raises ConfigError.
    """
    services.board(board)
    return await asyncio.to_thread(_existing, wanted) if wanted else await asyncio.to_thread(_founded, specification)


def _existing(wanted: str) -> Place:
    name, section = named_repository(wanted)
    pinned = pin(name, section)
    if read_policy(services.mirror(pinned), pinned.base_sha, detect_policy).test is None:
        raise ConfigError(
            f"repository {wanted!r} says nowhere how it is tested: set `test` in its WORKFLOW.md and commit"
        )
    given = wanted if wanted in services.settings().repositories else str(section.path)
    return Place(wanted=given, name=name, remote=pinned.remote)


def _founded(specification: Specification) -> Place:
    name = specification.name
    if name in services.settings().repositories:
        raise ConfigError(f"a repository {name!r} is configured; pass --repo {name} to build in it, or another --name")
    path = services.settings().root / "forge" / name / "repo.git"
    bare = found_repository(path, first_files(specification), f"Begin {name} with its specification")
    if (bare.read("refs/heads/main", "SPEC.md") or b"").decode(errors="replace") != specification.text:
        raise ConfigError(
            f"the repository {str(path)!r} began with another specification; pass --name for a new one, or --repo {str(path)!r} "
            "to build in that one"
        )
    pin(name, RepositorySection(path=path, remote=str(path)))
    return Place(wanted=str(path), name=name, remote=str(path))


def first_files(specification: Specification) -> dict[str, str]:
    """The first commit: the specification, rules for agents, how it is tested, and what git ignores."""
    protected = json.dumps([*Policy().protected_paths, "SPEC.md", "WORKFLOW.md"])
    files = {"SPEC.md": specification.text}
    if specification.stack == "node":
        package = {"name": specification.name, "version": "0.1.0", "private": True, "type": "module",
                   "scripts": {"test": "node --test"}}  # fmt: skip
        files |= {
            "AGENTS.md": _RULES.format(language="JavaScript (ES modules, no build step)", test="node --test",
                                       settings="the test script of package.json"),
            "WORKFLOW.md": _WORKFLOW.format(test="node --test", runner="node", protected=protected),
            "package.json": json.dumps(package, indent=2) + "\n",
            ".gitignore": "node_modules/\ncoverage/\n",
        }  # fmt: skip
    else:
        files |= {
            "AGENTS.md": _RULES.format(language="Python", test="python -m pytest -q", settings="pytest's, conftest.py too"),
            "WORKFLOW.md": _WORKFLOW.format(test="python -m pytest -q", runner="pytest", protected=protected),
            ".gitignore": "__pycache__/\n*.py[co]\n.pytest_cache/\n.venv/\nbuild/\ndist/\n*.egg-info/\n",
        }  # fmt: skip
    return files


_RULES = """\
# Rules

- SPEC.md says what is built. It is not changed here.
- {language}, and its standard library only: tests run without network and nothing is installed for them.
- Tests: `{test}`, in `tests/`. The settings of tests stay as they are ({settings}).
"""
_WORKFLOW = """\
---
test: {test}
test_runner: {runner}
protected_paths: {protected}
---
"""


@task(name="tracking ticket", task_run_name="tracking ticket")
async def track(specification: Specification, place: Place, board: str) -> Ticket:
    """The ticket of this build: the one there is for the same name, repository and text, else a new one.

    Raises ConfigError for a closed one.
    """
    return await asyncio.to_thread(_track, specification, place, board)


def _track(specification: Specification, place: Place, board: str) -> Ticket:
    section = services.board_section(board)
    if isinstance(section, FolderBoardSection):
        section.path.expanduser().mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{place.name}\0{specification.text}".encode()).hexdigest()[:16]
    ticket = services.board(board).create(
        f"Build {specification.name}",
        specification.text,
        marker=f"build-{specification.name}-{digest}",
        labels=(BUILD_LABEL,),
    )
    if ticket.closed:
        raise ConfigError(
            f"ticket {ticket.key!r} of this build is closed (state {ticket.state!r}); reopen it to go on, or write a ticket for "
            "what is to change"
        )
    return ticket


# ---- delivery ---------------------------------------------------------------------------------------------------


@task(name="pack", task_run_name="pack")
async def pack(job: Job, candidate: Candidate) -> str:
    """`<ticket>/attempt-<n>/application.tar.gz` in the object store, and a word of it on the ticket. Returns the key.

    The tree of the accepted commit lies below `application/`, the papers (what people read) below `papers/`. The same
    commit and papers make the same bytes.
    """
    return await asyncio.to_thread(_pack, job, candidate)


def _pack(job: Job, candidate: Candidate) -> str:
    folder = f"{job.ticket.key}/attempt-{job.attempt}/"
    store, mirror = services.objects(), services.mirror(job.repository)
    papers = {
        key.removeprefix(folder): store.get(key) or b"" for key in store.list(folder) if key.endswith((".md", ".diff"))
    }
    store.put(f"{folder}{ARCHIVE}", packed(mirror, candidate.head_sha, papers))
    text = f"Archive: `{folder}{ARCHIVE}` in the object store (`application/` is commit `{candidate.head_sha[:12]}`)."
    with fence(job):
        services.board(job.ticket.board).comment(job.ticket.key, text, marker=f"archive-{job.ticket.key}")
    return f"{folder}{ARCHIVE}"


def packed(mirror: Mirror, sha: str, papers: Mapping[str, bytes]) -> bytes:
    """A tar.gz of a commit's tree and of `papers` (name -> content)."""
    raw = io.BytesIO(mirror.tar(sha, "application"))
    with tarfile.open(fileobj=raw, mode="a:") as archive:
        for name, content in sorted(papers.items()):
            entry = tarfile.TarInfo(f"papers/{name}")
            entry.size, entry.mtime = len(content), mirror.committed_at(sha)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)
