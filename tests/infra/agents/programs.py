"""Programs for the tests of agents: recorded streams played by a script, scripts that misbehave, and the real ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from infra.agents.opening import KINDS
from infra.agents.program import ProgramAgent
from infra.sandbox import Bubblewrap, Limits
from infra.sections import AgentSection

RECORDINGS = Path(__file__).parent / "recordings"
BOX = Bubblewrap(Limits(timeout_seconds=60, output_bytes=100_000))
VERSION = "9.9.9"
ENDPOINT = "http://127.0.0.1:9/v1"
"""Where nothing listens."""

_SESSION_FILE = {
    "claude-code": '"$CLAUDE_CONFIG_DIR/projects/-workspace/session.jsonl"',
    "codex": '"$CODEX_HOME/sessions/2026/11/21/rollout-1.jsonl"',
    "mini-swe-agent": '"$MSWEA_GLOBAL_CONFIG_DIR/traj.json"',
}


def agent_of(folder: Path, kind: str, program: Path | str | None, **section: object) -> ProgramAgent:
    """An agent named `a` whose state is below `folder`."""
    given = {
        "kind": kind,
        "program": str(program) if program else None,
        "url": ENDPOINT,
        "model": "scripted",
        **section,
    }
    return KINDS[kind]("a", AgentSection.model_validate(given), folder / "agents" / "a")


def script(folder: Path, text: str) -> Path:
    """An executable shell script that knows its version."""
    path = folder / "program"
    path.write_text(f'#!/bin/sh\ncase "$1" in --version|--help) echo "program {VERSION}"; exit 0;; esac\n{text}\n')
    path.chmod(0o755)
    return path


def player(folder: Path, kind: str, which: str, ending: str = "exit 0") -> Path:
    """A script that prints a recorded stream, leaves the recorded session file, and ends so."""
    stream, session = RECORDINGS / f"{kind}-{which}.jsonl", RECORDINGS / f"{kind}-{which}.session"
    lines = []
    if session.is_file():
        target = _SESSION_FILE[kind]
        lines += [f'mkdir -p "$(dirname {target})"', f"cat > {target} <<'END'\n{session.read_text()}END"]
    if stream.is_file():
        lines.append(f"cat <<'END'\n{stream.read_text()}END")
    return script(folder, "\n".join([*lines, ending]))


def installed(kind: str) -> str:
    """The real program, from DARKFACTORY_AGENT_PROGRAMS (folders, joined by `:`) or PATH; skips where it is absent."""
    name = KINDS[kind].program
    places = os.pathsep.join(filter(None, (os.environ.get("DARKFACTORY_AGENT_PROGRAMS"), os.environ.get("PATH"))))
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(
            f"{name!r} is not installed; {KINDS[kind].install} and name its folder in DARKFACTORY_AGENT_PROGRAMS"
        )
    return found
