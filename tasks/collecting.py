"""The collector: puts the chosen changes and the new tests on one commit. Plain code, no model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prefect import task

from infra.git import Mirror
from tasks import services
from tasks.models import Candidate, Change, Job, TestChange


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


@task(
    name="collector",
    task_run_name="collector {number}.{round}",
    persist_result=True,
    cache_key_fn=lambda _, a: f"{collect_key(a['job'], a['changes'], a['tests'])}-{a['number']}-{a['round']}",
)
async def collect(
    job: Job, number: int, round: int, changes: tuple[Change, ...], tests: tuple[TestChange, ...]
) -> Candidate:
    """One commit on the base with the units' changes and the red tests. The commit is in the mirror when this returns."""
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
