"""Running many small edits against the failing tests in one sandboxed process.

Everything here is a hint: the process runs code that could fool it, so whoever takes a result measures it again.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from infra.mutants import Mutant
from infra.sandbox import Sandbox

_EACH_SECONDS = 10
"""A mutant that runs longer than this is dead: most are endless loops."""
_START_SECONDS = 60


async def executed_lines(
    sandbox: Sandbox, worktree: Path, tests: Iterable[str], *, seconds: float
) -> dict[str, frozenset[int]]:
    """The lines (1-based) of each file of a Python checkout that the pytest files or ids run through, tests included."""
    output = await _drive(sandbox, worktree, _trace_pytest, {"tests": sorted(tests)}, seconds)
    found = re.findall(r"^lines: (.+)$", output, flags=re.MULTILINE)
    try:
        return {path: frozenset(lines) for path, lines in json.loads(found[-1]).items()} if found else {}
    except (ValueError, AttributeError, TypeError):
        return {}


async def green_mutants(
    sandbox: Sandbox,
    worktree: Path,
    candidates: list[Mutant],
    *,
    runner: str,
    red: Iterable[str],
    suite: Iterable[str],
    seconds: float,
    enough: int,
) -> list[Mutant]:
    """The first `enough` mutants that turn all `red` tests green and keep `suite` green (both: paths or ids; an empty
    `suite` is no further test). Stops after `seconds`.
    """
    job = {
        "mutants": [[m.path, m.text] for m in candidates],
        "red": sorted(red),
        "suite": sorted(suite),
        "seconds": seconds,
        "each_seconds": _EACH_SECONDS,
        "enough": enough,
    }
    drive = _try_with_pytest if runner == "pytest" else _try_with_node
    output = await _drive(sandbox, worktree, drive, job, seconds)
    found = re.findall(r"^green: (\d+)$", output, flags=re.MULTILINE)
    return [candidates[int(n)] for n in found if int(n) < len(candidates)]


async def _drive(
    sandbox: Sandbox, worktree: Path, program: Callable[[], None], job: dict[str, Any], seconds: float
) -> str:
    """Run the source of `program` in the sandbox with `job` as JSON on its standard input."""
    source = f"from __future__ import annotations\n{textwrap.dedent(inspect.getsource(program))}\n{program.__name__}()"
    result = await sandbox.run(
        ["python", "-c", source],
        worktree=worktree,
        stdin=json.dumps(job).encode(),
        timeout_seconds=seconds + _START_SECONDS,
    )
    return result.output


def _trace_pytest() -> None:
    import json
    import os
    import sys

    import pytest

    here = os.getcwd()  # noqa: PTH109
    sys.path[:0] = [here, f"{here}/src"]
    seen: dict[str, set[int]] = {}

    def trace(frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(here):
            return None
        if event == "line":
            seen.setdefault(path[len(here) + 1 :], set()).add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", *json.load(sys.stdin)["tests"]])
    sys.settrace(None)
    print("\nlines: " + json.dumps({path: sorted(lines) for path, lines in seen.items()}), flush=True)


def _try_with_pytest() -> None:
    import json
    import os
    import pathlib
    import signal
    import sys
    import time

    import pytest

    job = json.load(sys.stdin)
    here = pathlib.Path.cwd()
    sys.path[:0] = [str(here), str(here / "src")]
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no"]

    def passes(tests: list[str]) -> bool:
        child = os.fork()
        if child == 0:
            hush = os.open(os.devnull, os.O_WRONLY)
            os.dup2(hush, 1)
            os.dup2(hush, 2)
            signal.alarm(job["each_seconds"])
            os._exit(int(pytest.main([*quiet, *tests])))
        return os.waitpid(child, 0)[1] == 0

    started, found = time.monotonic(), 0
    for number, (path, text) in enumerate(job["mutants"]):
        if time.monotonic() - started > job["seconds"] or found >= job["enough"]:
            break
        file = here / path
        original = file.read_bytes()
        file.write_bytes(text.encode())
        if passes(job["red"]) and (not job["suite"] or passes(job["suite"])):
            print(f"\ngreen: {number}", flush=True)
            found += 1
        file.write_bytes(original)


def _try_with_node() -> None:
    import json
    import pathlib
    import subprocess
    import sys
    import time

    job = json.load(sys.stdin)

    def passes(names: list[str]) -> bool:
        files = sorted({name.split(" > ")[0] for name in names})
        try:
            done = subprocess.run(
                ["node", "--test", *files], capture_output=True, timeout=job["each_seconds"], check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    started, found = time.monotonic(), 0
    for number, (path, text) in enumerate(job["mutants"]):
        if time.monotonic() - started > job["seconds"] or found >= job["enough"]:
            break
        file = pathlib.Path(path)
        original = file.read_bytes()
        file.write_bytes(text.encode())
        if passes(job["red"]) and (not job["suite"] or passes(job["suite"])):
            print(f"\ngreen: {number}", flush=True)
            found += 1
        file.write_bytes(original)
