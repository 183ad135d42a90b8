"""A repository's own commands around a run: after its checkout is made, before and after the run, before it is removed.

They run in the sandbox like everything a repository brings: no network, no secrets, only the checkout.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

from infra.errors import FactoryError, WorkFailed
from infra.git import Worktree
from infra.sandbox import CommandResult, Sandbox
from tasks.models import Policy

HookName = Literal["after_create", "before_run", "after_run", "before_remove"]
SHOWN_CHARS = 500

_log = logging.getLogger(__name__)


@asynccontextmanager
async def prepared(
    checkout: AbstractContextManager[Worktree],
    policy: Policy,
    sandbox: Sandbox,
    files: Mapping[str, str | None] = {},
) -> AsyncIterator[Worktree]:
    """A checkout in which tests or an agent run: the policy's hooks around it, `files` (path -> text, None deletes)
    written over it.

    `after_create` finds the commit as it is, `before_run` the files too; in a checkout that holds unfinished work both are
    there already, and one that stays is not said to be removed. Without hooks no process is started. Raises WorkFailed when
    `after_create` fails, InvalidOutput for a path that may not be written.
    """
    with checkout as worktree:
        try:
            if worktree.begun is None:
                await run_hook("after_create", policy, worktree.path, sandbox)
                _lay(worktree, files)
            await run_hook("before_run", policy, worktree.path, sandbox)
            try:
                yield worktree
            finally:
                await run_hook("after_run", policy, worktree.path, sandbox)
        except BaseException as error:
            if not worktree.stays_after(error):
                await run_hook("before_remove", policy, worktree.path, sandbox)
            raise
        await run_hook("before_remove", policy, worktree.path, sandbox)


def _lay(worktree: Worktree, files: Mapping[str, str | None]) -> None:
    for path, text in files.items():
        if text is None:
            worktree.delete(path)
        else:
            worktree.write(path, text)


async def run_hook(name: HookName, policy: Policy, worktree: Path, sandbox: Sandbox) -> str | None:
    """Run the policy's hook, if it has one. Returns what went wrong, in one line, or None when nothing did (WS4).

    A failing `after_create` raises WorkFailed: the checkout is not what the repository wants, and the caller removes
    it. The other hooks' failures are logged and ignored, and so is what `Sandbox.run` raises about them.
    """
    command: str | None = getattr(policy.hooks, name)
    if not command:
        return None
    limit = policy.hooks.timeout_seconds
    try:
        result = await sandbox.run(command, worktree=worktree, timeout_seconds=limit)
    except FactoryError as error:
        if name == "after_create":
            raise
        problem: str | None = f"the hook {name!r} could not be run: {error}"
    else:
        problem = _problem(name, result, limit)
    if problem is None:
        _log.info("hook=%s outcome=done", name)
        return None
    if name == "after_create":
        raise WorkFailed(f"{problem}; correct `hooks` in WORKFLOW.md and commit")
    _log.warning("hook=%s outcome=failed ignored=yes reason=%s", name, problem)
    return problem


def _problem(name: str, result: CommandResult, limit_seconds: float) -> str | None:
    said = result.output.strip()
    tail = ("…" if len(said) > SHOWN_CHARS else "") + said[-SHOWN_CHARS:]
    if result.timed_out:
        return f"the hook {name!r} did not end within {limit_seconds:g} s: {tail!r}"
    if result.flooded:
        return f"the hook {name!r} wrote too much and was killed: {tail!r}"
    return f"the hook {name!r} ended with exit code {result.exit_code}: {tail!r}" if result.exit_code else None
