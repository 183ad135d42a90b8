"""The collector: puts the chosen changes and the new tests on one commit, and says what it is made of. No model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from prefect import task

from infra.git import Mirror
from tasks import paper, services
from tasks.models import Candidate, Change, Ending, Frozen, Job, Plan, TestChange, Usage
from tasks.seats import seat


def merge(base: str, ours: str, theirs: str) -> str | None:
    """Three-way merge of one file's texts (git merge-file, no repository involved); None when lines collide."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("ours", "base", "theirs")]
        for file, text in zip(files, (ours, base, theirs), strict=True):
            file.write_bytes(text.encode())
        done = subprocess.run(
            ["git", "merge-file", "-p", *map(str, files)], capture_output=True, check=False, cwd=folder,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        )  # fmt: skip
    return done.stdout.decode() if done.returncode == 0 else None


def combine(mirror: Mirror, base_sha: str, changes: Iterable[Change]) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """All units' files as one set (path -> text or None for deleted) and the paths on which units collide.

    Where two units changed one file their edits are merged; where they collide the earlier unit's text stays.
    """
    combined: dict[str, str | None] = {}
    conflicts: list[str] = []
    for change in changes:
        for path, text in change.files.items():
            merged = text
            earlier = combined.get(path)
            if path in combined and earlier != text:
                raw = mirror.read(base_sha, path)
                merged = (
                    merge((raw or b"").decode(errors="replace"), earlier, text)
                    if not (earlier is None or text is None)
                    else None
                )
                if merged is None:
                    conflicts.append(path)
                    continue
            combined[path] = merged
    return combined, tuple(dict.fromkeys(conflicts))


def collect_key(job: Job, changes: tuple[Change, ...], tests: tuple[TestChange, ...]) -> str:
    """Cache key: the base commit and every byte that goes onto the branch."""
    said = json.dumps(
        [job.repository.base_sha, job.ticket.key, [c.files for c in changes], [t.files for t in tests]], sort_keys=True
    )
    return f"collect-{hashlib.sha256(said.encode()).hexdigest()}"


class Part(Frozen):
    """What one coder or tester brought to a commit. `files` maps path to the SHA-256 of the text, None for deleted."""

    role: Literal["coder", "tester"]
    unit: str
    index: int
    ending: Ending
    files: dict[str, str | None]
    samples: int = 0
    usage: Usage = Usage()


class Manifest(Frozen):
    """What a commit was put together from, in the order in which it was laid."""

    candidate: int
    commit: str
    parts: tuple[Part, ...]
    conflicts: tuple[str, ...]


@task(name="collector", task_run_name="collector {number}.{round}")
async def collect(
    job: Job, number: int, round: int, changes: tuple[Change, ...], tests: tuple[TestChange, ...]
) -> Candidate:
    """One commit on the base with the units' changes and the red tests, and the sheet that says what it is made of."""
    candidate = await put_together(job, number, round, changes, tests)
    if not await asyncio.to_thread(services.mirror(job.repository).contains, candidate.head_sha, candidate.head_sha):
        made_anew = put_together.with_options(
            refresh_cache=True
        )  # the mirror that held it was removed, or is another one
        candidate = await made_anew(job, number, round, changes, tests)
    made = manifest(candidate)
    status: paper.Status = "partial" if candidate.conflicts else "success"
    signed = paper.Signature(role="collector", index=number, round=round, model="code", status=status)
    await paper.leave_sheet(job, f"manifest-{number}-{round}", signed, _as_markdown(made), made)
    return candidate


@task(name="coders' sheets", task_run_name="coders' sheets {round}")
async def receive(job: Job, plan: Plan, round: int, changes: Iterable[Change]) -> None:
    """Leave each coder's sheet: what it says it did, and the files it handed in."""
    model = seat(job, "coder", plan.effort).model
    for change in changes:
        status: paper.Status = "success" if change.passed else "partial" if change.files else "fail"
        signed = paper.Signature(role="coder", index=change.candidate, round=round, model=model, status=status,
                                 usage=change.usage)  # fmt: skip
        sheet = [change.explanation or "(no words)", "", f"Ending: {change.ending}, {change.samples} step(s)."]
        sheet += [f"- `{path}`{' deleted' if text is None else ''}" for path, text in change.files.items()]
        await paper.leave_sheet(job, f"code-{change.candidate}-{round}-{change.unit}", signed, "\n".join(sheet), change)


def manifest(candidate: Candidate) -> Manifest:
    """Unit -> commit, with the hash of every file."""
    coded = [Part(role="coder", unit=c.unit, index=c.candidate, ending=c.ending, files=_hashes(c.files),
                  samples=c.samples, usage=c.usage) for c in candidate.changes]  # fmt: skip
    tested = [Part(role="tester", unit="tests", index=t.tester, ending=t.ending, files=_hashes(t.files), usage=t.usage)
              for t in candidate.tests]  # fmt: skip
    return Manifest(
        candidate=candidate.number,
        commit=candidate.head_sha,
        parts=(*coded, *tested),
        conflicts=candidate.conflicts,
    )


def whole(job: Job, candidate: Candidate) -> tuple[Change, ...]:
    """The candidate's changes as the one change that its commit holds, for a round that goes on from it."""
    if len(candidate.changes) < 2:
        return candidate.changes
    files, _ = combine(services.mirror(job.repository), job.repository.base_sha, candidate.changes)
    return (Change(unit="all", candidate=candidate.number, round=candidate.round, ending="done", files=files),)


def _hashes(files: Mapping[str, str | None]) -> dict[str, str | None]:
    return {
        path: hashlib.sha256(text.encode()).hexdigest() if text is not None else None for path, text in files.items()
    }


def _as_markdown(made: Manifest) -> str:
    rows = [
        f"| {p.role} {p.index} | {p.unit} | {p.ending} | {path} | {'deleted' if digest is None else digest[:16]} |"
        for p in made.parts
        for path, digest in (p.files or {"none": ""}).items()
    ]
    collided = ["", "Units collide in:", *(f"- {path}" for path in made.conflicts)] if made.conflicts else []
    return "\n".join([
        f"Candidate {made.candidate} is commit `{made.commit}`.", "",
        "| who | unit | ending | file | sha256 |", "|---|---|---|---|---|", *rows, *collided,
    ])  # fmt: skip


@task(
    name="commit",
    task_run_name="commit {number}.{round}",
    persist_result=True,
    cache_key_fn=lambda _, a: f"{collect_key(a['job'], a['changes'], a['tests'])}-{a['number']}-{a['round']}",
)
async def put_together(
    job: Job, number: int, round: int, changes: tuple[Change, ...], tests: tuple[TestChange, ...]
) -> Candidate:
    """The commit. It is in the mirror when this returns."""
    mirror = services.mirror(job.repository)
    files, conflicts = combine(mirror, job.repository.base_sha, changes)
    red = tuple(t for t in tests if t.red)
    name = f"candidate-{number}-{round}"
    with mirror.worktree(services.worktrees(), job.ticket.key, name, job.repository.base_sha) as worktree:
        for path, text in {**files, **{p: text for t in red for p, text in t.files.items()}}.items():
            if text is None:
                worktree.delete(path)
            else:
                worktree.write(path, text)
        head = await worktree.commit(services.sandbox(), f"{job.ticket.title}\n\nTicket: {job.ticket.key}")
    await asyncio.to_thread(mirror.point, f"refs/darkfactory/{worktree.path.parent.name}/{name}", head)
    return Candidate(number=number, round=round, head_sha=head, changes=changes, tests=red, conflicts=conflicts)
