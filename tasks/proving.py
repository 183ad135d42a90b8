"""Proof: the repository's own QA command on a pull request's head, with what it printed and the files it left (T15)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from prefect import task

from infra.git import Worktree, directory_name
from infra.redaction import redact
from infra.sandbox import Sandbox
from infra.test_runners import detect_policy
from tasks import services
from tasks.holding import fence
from tasks.hooks import prepared
from tasks.models import Frozen, Policy
from tasks.policy import read_policy
from tasks.refining import Ended, Round, close
from tasks.scribe import code
from tasks.stewarding import qa_folder

MOST_FILES = 50
MOST_BYTES = 20 << 20
TAIL_CHARS = 1_500


class Proof(Frozen):
    """What the QA command came to. `digests` maps a kept file to its SHA-256; the output is `output.txt`."""

    command: str
    exit_code: int
    seconds: float
    timed_out: bool = False
    tail: str = ""
    digests: dict[str, str] = {}


def _key(arguments: dict[str, Any]) -> str:
    round, section = arguments["round"], services.settings().repositories[arguments["round"].row.repository].steward
    said = json.dumps([round.row.repository, round.head_sha, section.qa, section.qa_artifacts])
    return f"qa-{hashlib.sha256(said.encode()).hexdigest()}"


@task(name="QA", task_run_name="QA", persist_result=True, cache_key_fn=lambda _, arguments: _key(arguments))
async def prove(round: Round) -> Proof:
    """Run the command on a fresh checkout of the head, in the sandbox, and keep output and files in the object store."""
    section, job = services.settings().repositories[round.row.repository].steward, round.job
    mirror, sandbox = services.mirror(job.repository), services.sandbox()
    policy = read_policy(mirror, round.judged, detect_policy)
    checkout = mirror.worktree(services.worktrees(), job.ticket.key, "qa", round.head_sha)
    async with prepared(checkout, policy, sandbox) as worktree:
        return await _run(
            worktree, sandbox, policy, section.qa or "true", section.qa_artifacts, qa_folder(round.row, round.head_sha)
        )


async def _run(
    worktree: Worktree, sandbox: Sandbox, policy: Policy, command: str, globs: tuple[str, ...], folder: str
) -> Proof:
    limit = policy.timeout_seconds
    if policy.setup is not None:
        done = await sandbox.run(policy.setup, worktree=worktree.path, timeout_seconds=limit, network=policy.network)
        if done.exit_code != 0 or done.timed_out:
            return _keep(
                folder,
                Proof(command=policy.setup, exit_code=done.exit_code or 1, seconds=done.seconds),
                done.output,
                {},
            )
    done = await sandbox.run(command, worktree=worktree.path, timeout_seconds=limit)
    files = {
        path: raw for path in worktree.matching(globs, MOST_FILES) if (raw := worktree.read_bytes(path, MOST_BYTES))
    }
    failed = done.exit_code or int(done.timed_out)
    proof = Proof(command=command, exit_code=failed, seconds=done.seconds, timed_out=done.timed_out)
    return _keep(folder, proof, done.output, files)


def _keep(folder: str, proof: Proof, output: str, files: dict[str, bytes]) -> Proof:
    text = redact(output)
    kept = {"output.txt": text.encode(errors="replace")} | {
        f"files/{directory_name(p)}": raw for p, raw in files.items()
    }
    for name, raw in kept.items():
        services.objects().put(f"{folder}/{name}", raw)
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in kept.items()}
    return proof.model_copy(update={"tail": text[-TAIL_CHARS:], "digests": digests})


@task(name="attach proof", task_run_name="attach proof")
async def attach(round: Round, proof: Proof) -> Ended:
    """Put the proof onto the pull request, once for each commit."""
    return await asyncio.to_thread(_attach, round, proof)


def _attach(round: Round, proof: Proof) -> Ended:
    row, head = round.row, round.head_sha
    told = redact(as_comment(head, proof, qa_folder(row, head)))
    with fence(round.job):
        services.forge(row.repository).comment(row.branch, told, f"qa-{head[:12]}")
        handled = row.handled.model_copy(update={"qa": head, "qa_exit": proof.exit_code})
        services.stewardships().save(row, handled=handled, settled=None)
    close(round, "accepted")
    said = f"{proof.command!r} ended with exit code {proof.exit_code}"
    return Ended(branch=row.branch, kind="qa", decision="ACCEPT" if proof.exit_code == 0 else "REJECT", reasons=(said,))


def as_comment(head_sha: str, proof: Proof, folder: str) -> str:
    """The proof for people: how it ended, what it printed last, and the digests by which kept files are known."""
    ended = "ran out of time" if proof.timed_out else f"ended with exit code {proof.exit_code}"
    tail = proof.tail.replace("```", "'''").replace("<!--", "&lt;!--")
    return "\n".join([
        f"QA of `{head_sha[:12]}`: {code(proof.command)} {ended} after {proof.seconds:.0f} s.", "",
        "```text", tail.strip() or "(no output)", "```", "",
        f"Kept in the object store below `{folder}`:", "", "| file | SHA-256 |", "|---|---|",
        *(f"| {code(name)} | `{digest}` |" for name, digest in proof.digests.items()),
    ])  # fmt: skip
