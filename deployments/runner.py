"""What runs on a GitHub Actions runner: `darkfactory run-unit` codes one unit with tools and leaves a patch and a report.

No database, no Prefect server and no secrets but the endpoint's key; nothing here is believed by the factory that asked.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from infra.actions.archive import PATCH, REPORT
from infra.code_index import CodeIndex
from infra.errors import CapacityUnavailable, ConfigError, FactoryError, RateLimited, Unreachable
from infra.files import write_atomically
from infra.git import Mirror, Worktree
from infra.llm import Completion, ModelClient, ModelRequest
from infra.llm.opening import open_model
from infra.redaction import redact
from infra.sandbox import Sandbox, open_sandbox
from infra.settings import Settings, load_settings
from tasks.actions import RunnerReport, RunnerUnit, Spent
from tasks.agent import AgentEvent, AgentLimits, AgentResult, Toolbox, run_agent
from tasks.coding import CoderAnswer
from tasks.context import SYSTEM
from tasks.edits import edited_files
from tasks.hooks import prepared
from tasks.models import Hooks

BRANCH = "darkfactory-unit"
REPLY_SHARE = 0.5
"""Of the longest request: GitHub's free tier takes 8 000 tokens and answers with 4 000."""
PAUSES = (2.0, 10.0, 30.0, 60.0)
LONGEST_WAIT_SECONDS = 120.0
"""A limit per minute is waited for, one per day is not."""


def run_unit(unit_file: Path, repository: Path, output: Path, say: Callable[[str], None]) -> int:
    """Work on the unit in the checkout `repository` and write `patch.diff` and `report.json`. Returns the exit code.

    Raises ConfigError when the unit cannot be read; everything later ends in the report.
    """
    unit = _read(unit_file)
    output.mkdir(parents=True, exist_ok=True)
    try:
        report, patch = asyncio.run(_work(unit, load_settings(model=unit.model), repository, say))
        code = 0
    except FactoryError as error:
        report, patch, code = _failed(error), b"", error.exit_code
        say(f"unit={unit.id} outcome=failed reason={report.error!r}")
    write_atomically(output / PATCH, patch)
    write_atomically(output / REPORT, report.model_dump_json(indent=1).encode())
    return code


def _read(unit_file: Path) -> RunnerUnit:
    try:
        return RunnerUnit.model_validate_json(unit_file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{str(unit_file)!r} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(
            f"{str(unit_file)!r} is no unit of this version ({error.error_count()} mistakes); install the same version of "
            "darkfactory on the runner (`darkfactory actions --install`) and in the factory"
        ) from None


async def _work(
    unit: RunnerUnit, settings: Settings, repository: Path, say: Callable[[str], None]
) -> tuple[RunnerReport, bytes]:
    mirror, sandbox = _mirror(settings, repository, unit.base_sha), open_sandbox(settings)
    checkout = mirror.worktree(settings.root / "worktrees", "unit", unit.id, unit.base_sha)
    async with prepared(checkout, unit.policy, sandbox, unit.laid) as worktree:
        # what hooks left in the checkout is no work of the agent
        hooks = unit.policy.hooks != Hooks()
        start = await worktree.commit(sandbox, "before the agent") if hooks else unit.base_sha
        result = await _ask(unit, settings, mirror, worktree, sandbox, say)
        head = await worktree.commit(sandbox, unit.message)
    files = edited_files(mirror, start, head, unit.laid)
    spent = Spent.model_validate(result.usage.model_dump(exclude={"cost_usd"}))
    said = str((result.answer or {}).get("explanation") or result.explanation)[:400]
    report = RunnerReport(ending=result.ending, explanation=said, steps=result.steps, spent=spent)
    return report, mirror.patch(unit.base_sha, head, sorted(files))


async def _ask(
    unit: RunnerUnit,
    settings: Settings,
    mirror: Mirror,
    worktree: Worktree,
    sandbox: Sandbox,
    say: Callable[[str], None],
) -> AgentResult:
    narrow = settings.model_copy(update={"model_context_tokens": unit.context_tokens})
    limits = AgentLimits(steps=unit.steps, seconds=unit.seconds, reply_tokens=int(unit.context_tokens * REPLY_SHARE))
    toolbox = Toolbox(worktree, sandbox, unit.policy, unit.grant, answer=CoderAnswer, index=CodeIndex(mirror))

    def on_event(event: AgentEvent) -> None:
        if event.kind == "tool":
            say(f"unit={unit.id} step={event.step} tool={event.name!r} error={event.is_error}")

    model = _Patient(open_model(narrow))
    return await run_agent(model, SYSTEM, unit.prompt, toolbox, limits, on_event, seed=unit.seed, nonce=unit.nonce)


def _mirror(settings: Settings, repository: Path, base_sha: str) -> Mirror:
    """A mirror of the checkout, which has no branch and only one commit. Raises ConfigError when it is another commit."""
    branch = ["git", "-C", str(repository), "branch", "--force", BRANCH, base_sha]
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(branch, env=plain, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"{str(repository)!r} has no commit {base_sha!r}: {done.stderr.strip()[:200]!r}; check it out"
        )
    return Mirror.open(settings.root / "repos", "unit", str(repository))


def _failed(error: FactoryError) -> RunnerReport:
    reset_at = error.reset_at if isinstance(error, RateLimited) else None
    words = redact(str(error))[:2_000] or type(error).__name__
    return RunnerReport(error=words, category=error.category, reset_at=reset_at)


class _Patient:
    """The model, asked again when it has a limit per minute or is away for a moment: nobody else is there to wait."""

    def __init__(self, client: ModelClient) -> None:
        self.name, self.tier, self.context_tokens = client.name, client.tier, client.context_tokens
        self._client = client

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As `ModelClient.complete`, after up to `PAUSES`."""
        for pause in PAUSES:
            try:
                return await self._client.complete(request, on_text)
            except (RateLimited, Unreachable, CapacityUnavailable) as error:
                wait = max(pause, _until_reset(error))
                if wait > LONGEST_WAIT_SECONDS:
                    raise
            await asyncio.sleep(wait)
        return await self._client.complete(request, on_text)

    async def check(self) -> str:
        """As `ModelClient.check`."""
        return await self._client.check()


def _until_reset(error: FactoryError) -> float:
    if isinstance(error, RateLimited) and error.reset_at is not None:
        return (error.reset_at - datetime.now(UTC)).total_seconds()
    return 0.0
