"""One benchmark ticket through every backend that can code here, with the same brief, tests, evidence and hidden tests.

    python -m benchmarks.backends                               # built-in, a command, and what is installed
    python -m benchmarks.backends --ticket waypost-01 --only built-in --only mini-swe-agent
    python -m benchmarks.backends --endpoint claude-code=http://127.0.0.1:8000 --endpoint codex=http://127.0.0.1:8000/v1

All use the configured model's endpoint. Claude Code and Codex speak other protocols than chat completions, so they need an
endpoint that is said to speak theirs; the embedded model's server speaks all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from benchmarks.mini_swe import bench_home, install_mini
from benchmarks.run import endpoint, run_factory
from benchmarks.tickets import BenchTicket, load_tickets
from deployments.engine import choose_engine
from infra.errors import FactoryError
from infra.llm import Usage
from infra.settings import load_settings

BUILT_IN = "built-in"
BACKENDS = (BUILT_IN, "command", "mini-swe-agent", "opencode", "codex", "claude-code")
OWN_PROTOCOL = ("codex", "claude-code")
TURNS = 20
ONE_SHOT = """\
import json, os, re, subprocess, sys, urllib.request
ask = "Answer with one bash block that mends the files in the current folder.\\n\\n" + sys.stdin.read()
body = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": ask}], "max_tokens": 1024, "temperature": 0}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
found = re.search(r"```(?:bash|sh)\\n(.*?)```", said, re.DOTALL)
print(said[-300:])
sys.exit(subprocess.run(["sh", "-c", found[1]]).returncode if found else 0)
"""
"""The smallest agent there is, for the backend `command`: one question, one script."""


def sections(
    urls: dict[str, str], model: str, programs: dict[str, str], seconds: float = 900
) -> dict[str, dict[str, Any]]:
    """Backend -> its section of `agents`; the built-in one's is empty. Left out: what has no endpoint or is not installed.

    `urls` holds the base URL of chat completions as `""`, and those of backends that need another.
    """
    found: dict[str, dict[str, Any]] = {BUILT_IN: {}}
    for kind in BACKENDS[1:]:
        url = urls.get(kind) or ("" if kind in OWN_PROTOCOL else urls[""])
        if url and kind in programs:
            found[kind] = {"kind": kind, "program": programs[kind], "url": url, "model": model, "max_seconds": seconds,
                           "max_turns": TURNS}  # fmt: skip
    return found


def installed_programs() -> dict[str, str]:
    """Backend -> program, of those that are here; mini-swe-agent is installed as its lock says."""
    names = {"opencode": "opencode", "codex": "codex", "claude-code": "claude"}
    places = os.pathsep.join(filter(None, (os.environ.get("DARKFACTORY_AGENT_PROGRAMS"), os.environ.get("PATH"))))
    found = {kind: shutil.which(name, path=places) for kind, name in names.items()}
    own = {
        "command": f"python3 -c {shlex.quote(ONE_SHOT)}",
        "mini-swe-agent": str(install_mini(bench_home()) / "bin/mini"),
    }
    return own | {kind: path for kind, path in found.items() if path}


async def run_backend(name: str, section: dict[str, Any], ticket: BenchTicket, folder: Path) -> dict[str, Any]:
    """The coding half of a run (no advice) with this backend as the coder; a failure is a row, too."""
    from tasks import services

    os.environ["DARKFACTORY_AGENTS"] = json.dumps({name: section} if section else {})
    os.environ["DARKFACTORY_ROLES"] = json.dumps({"coder": {"agent": name}} if section else {})
    services.close()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before = await asyncio.to_thread(services.ledger().usage_of, ticket.key)
    try:
        row = await run_factory(ticket, folder, "coding")
    except FactoryError as error:
        row = {"solved": False, "ending": f"{type(error).__name__}: {error}"[:200], "seconds": 0.0}
    after = await asyncio.to_thread(services.ledger().usage_of, ticket.key)
    return {**row, "agent": name, "ticket": ticket.key, **_used(before, after)}


def _used(before: Usage, after: Usage) -> dict[str, float]:
    """What this run added: the ledger sums all runs of a ticket."""
    names = ("calls", "prompt_tokens", "completion_tokens", "cost_usd")
    return {name: getattr(after, name) - getattr(before, name) for name in names}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line for each backend. A command does not tell its tokens."""
    lines = [
        "| backend | ticket | solved | seconds | calls | tokens | USD | ending |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        lines.append(
            f"| {row['agent']} | {row['ticket']} | {'yes' if row['solved'] else 'no'} | {row['seconds']:.0f} | {row['calls']} "
            f"| {tokens} | {row['cost_usd']:.4f} | {row['ending']} |"
        )
    return "\n".join(lines)


async def measure(
    ticket: BenchTicket, folder: Path, urls: dict[str, str], only: list[str], seconds: float
) -> list[dict[str, Any]]:
    """All backends, one after the other, on the endpoint of the configured model."""
    model, url = load_settings().model.partition("/")[2] or "local", await endpoint()
    spoken = {"codex": url, "claude-code": url.removesuffix("/v1")} if load_settings().model == "embedded" else {}
    found = sections({"": url, **spoken, **urls}, model, installed_programs(), seconds)
    rows = []
    for name, section in found.items():
        if not only or name in only:
            rows.append(await run_backend(name, section, ticket, folder / name))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticket", default="timespan-04")
    parser.add_argument("--only", action="append", default=[], choices=BACKENDS)
    parser.add_argument("--endpoint", action="append", default=[], metavar="BACKEND=URL")
    parser.add_argument("--folder", type=Path, default=bench_home() / "backends")
    parser.add_argument("--seconds", type=float, default=900, help="longest session of an agent")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    os.environ.setdefault("DARKFACTORY_BOARD", str(folder / "board"))
    os.environ.setdefault("DARKFACTORY_MEMORY", '{"enabled": false}')  # what one ticket taught must not help the next
    urls = dict(each.split("=", 1) for each in arguments.endpoint)
    engine = choose_engine(load_settings())
    engine.start()
    try:
        engine.wait()
        rows = asyncio.run(
            measure(load_tickets((arguments.ticket,))[0], folder, urls, arguments.only, arguments.seconds)
        )
    finally:
        engine.stop()
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
