"""The peer: mini-swe-agent on one benchmark ticket, with the same model endpoint, ticket text and test command.

It lives in a virtual environment of its own and runs inside the factory's sandbox, with the network open because it
has to reach the endpoint. Called as its documentation says for a local model, with text-based actions
(small models answer tool calls as text).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tickets import BenchTicket, materialise, texts
from infra.errors import InfraError
from infra.llm import Frozen, Usage
from infra.sandbox import Bind, Sandbox

LOCK = Path(__file__).parent / "requirements-mini.lock"
STEP_LIMIT = 10
ANSWER_TOKENS = 1024
"""Longest answer, as the factory's own: at temperature 0 a small model may repeat itself until the wall time is over."""
WALL_SECONDS = 900.0
_INSTALL_SECONDS = 1800
_MAX_TRAJECTORY_BYTES = 64 << 20
_OUTPUT = "/output"
_ENVIRONMENT = {
    "MSWEA_CONFIGURED": "true",
    "MSWEA_COST_TRACKING": "ignore_errors",
    "MSWEA_GLOBAL_CONFIG_DIR": "/home/agent",
    "MSWEA_SILENT_STARTUP": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else every start waits for a download
}


class MiniRun(Frozen):
    """What one run left behind. `exit_status` is mini's own (`Submitted`, `LimitsExceeded`, `RepeatedFormatError`, an
    exception's name), `TimeExceeded` when the wall limit killed it, or `NotStarted`. `usage.seconds` is wall time.
    """

    ticket: str
    exit_status: str
    usage: Usage
    checkout: Path
    diff: str
    output: str = ""
    """What mini printed, for a person who wonders about the status."""


def bench_home() -> Path:
    """Where installs and runs go: DARKFACTORY_BENCH_HOME, else a folder in the system's temporary one."""
    return Path(
        os.environ.get("DARKFACTORY_BENCH_HOME") or Path(tempfile.gettempdir()) / "darkfactory-bench"
    ).absolute()


def install_mini(home: Path) -> Path:
    """The virtual environment `home/mini-venv` as the lock file says; made again when it is unfinished or outdated.

    Returns its folder. Raises InfraError when pip fails.
    """
    venv = home / "mini-venv"
    done, digest = venv / "lock.sha256", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if done.is_file() and done.read_text() == digest:
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    _run_or_raise([sys.executable, "-m", "venv", str(venv)])
    _run_or_raise([str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)])
    done.write_text(digest)
    return venv


def _run_or_raise(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise InfraError(
            f"{command[1:4]!r} took more than {_INSTALL_SECONDS} s; check the network and repeat"
        ) from None
    if done.returncode:
        raise InfraError(f"{command[1:4]!r} failed, repeat when it is mended: {done.stderr.strip()[-500:]!r}")


def task_text(ticket: BenchTicket) -> str:
    """What mini is asked: title, text and test command, as every agent gets them."""
    return f"{ticket.title}\n\n{ticket.body.strip()}\n\nThe tests are run with `{ticket.test_command}`."


async def run_mini(
    ticket: BenchTicket,
    folder: Path,
    *,
    sandbox: Sandbox,
    venv: Path,
    model_url: str,
    model: str = "local",
    step_limit: int = STEP_LIMIT,
    wall_seconds: float = WALL_SECONDS,
) -> MiniRun:
    """Let mini work on the ticket in `folder/checkout`, which is left behind with `folder/output/traj.json`.

    `model_url` is the OpenAI-compatible base URL with `/v1`. Raises ConfigError when `folder` was used before, and what
    the sandbox raises.
    """
    checkout = materialise(ticket, folder / "checkout")
    output = folder / "output"
    output.mkdir()
    # Paths stay as they are: a virtual environment cannot be moved.
    binds = [Bind(source=venv, target=str(venv)), Bind(source=output, target=_OUTPUT, writable=True)]
    done = await sandbox.run(
        _command(ticket, venv, model_url, model, step_limit),
        worktree=checkout,
        timeout_seconds=wall_seconds,
        network=True,
        environment=_ENVIRONMENT,
        binds=binds,
    )
    status, usage = read_trajectory(output / "traj.json")
    return MiniRun(
        ticket=ticket.key,
        exit_status="TimeExceeded" if done.timed_out else status or "NotStarted",
        usage=usage.model_copy(update={"seconds": done.seconds}),
        checkout=checkout,
        diff=_diff(ticket, checkout),
        output=done.output,
    )


def _command(ticket: BenchTicket, venv: Path, model_url: str, model: str, step_limit: int) -> list[str]:
    settings = {
        "model.model_kwargs.api_base": model_url,
        "model.model_kwargs.api_key": "x",
        "model.model_kwargs.temperature": "0",
        "model.model_kwargs.max_tokens": str(ANSWER_TOKENS),
        "agent.step_limit": str(step_limit),
    }
    return [
        str(venv / "bin/mini"), "-m", f"openai/{model}", "--model-class", "litellm_textbased",
        "-c", "mini_textbased.yaml", *(word for pair in settings.items() for word in ("-c", "=".join(pair))),
        "-y", "--exit-immediately", "-l", "0", "-t", task_text(ticket), "-o", f"{_OUTPUT}/traj.json",
    ]  # fmt: skip


def read_trajectory(path: Path) -> tuple[str, Usage]:
    """mini's exit status ('' when it has none) and the provider's token counts, summed over all calls.

    mini saves after each step, so a killed run lacks only the step it was in. A missing or broken file counts nothing.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_TRAJECTORY_BYTES:
            return "", Usage()
        data = json.loads(path.read_bytes())
        calls = [_usage(message) for message in data["messages"]]
        usage = sum((call for call in calls if call), Usage())
        return str(data["info"].get("exit_status", "")), usage
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # an agent can write there too
        return "", Usage()


def _usage(message: dict[str, Any]) -> Usage | None:
    response = message.get("extra", {}).get("response")
    if not isinstance(response, dict):
        return None
    counts = response.get("usage") or {}
    return Usage(
        prompt_tokens=counts.get("prompt_tokens", 0),
        cached_tokens=(counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        completion_tokens=counts.get("completion_tokens", 0),
        calls=1,
    )


def _diff(ticket: BenchTicket, checkout: Path) -> str:
    """What was changed, without git: the checkout's own configuration could make the host's git run something."""
    with tempfile.TemporaryDirectory() as name:
        before = texts(materialise(ticket, Path(name) / "base"))
    after = texts(checkout)
    lines: list[str] = []
    for path in sorted({*before, *after}):
        old, new = (files.get(path, "").splitlines(keepends=True) for files in (before, after))
        lines += difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
