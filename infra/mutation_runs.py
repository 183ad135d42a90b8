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
"""A mutant whose red tests run longer than this is dead: most are endless loops. The suite may take three times it."""
_START_SECONDS = 60
_MORE_SECONDS = 8
"""How long to look for further finds after the first one."""


async def executed_lines(
    sandbox: Sandbox, worktree: Path, tests: Iterable[str], *, seconds: float
) -> dict[str, frozenset[int]]:
    """The lines (1-based) of each file of a Python checkout that the pytest files or ids run through, tests included."""
    job = {"tests": sorted(tests), "seconds": seconds}
    output = await _drive(sandbox, worktree, _trace_pytest, job, seconds)
    found = re.findall(r"^lines: (.+)$", output, flags=re.MULTILINE)
    try:
        traced = json.loads(found[-1]) if found else {}
        return {path: frozenset(n for n in lines if isinstance(n, int)) for path, lines in traced.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):  # the tests may have written it
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
        "more_seconds": _MORE_SECONDS,
    }
    drive = _try_with_pytest if runner == "pytest" else _try_with_node
    output = await _drive(sandbox, worktree, drive, job, seconds)
    found = dict.fromkeys(int(n) for n in re.findall(r"^green: (\d{1,9})$", output, flags=re.MULTILINE))
    return [candidates[n] for n in found if n < len(candidates)][:enough]


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
    import signal
    import sys

    import pytest

    job = json.load(sys.stdin)
    here = os.getcwd()  # noqa: PTH109
    sys.path[:0] = [here, f"{here}/src"]
    seen: dict[str, set[int]] = {}
    output = os.dup(1)  # pytest puts its own file in the place of 1

    def tell(*_: object) -> None:
        sys.settrace(None)
        lines = {path: sorted(lines) for path, lines in seen.items()}
        os.write(output, f"\nlines: {json.dumps(lines)}\n".encode())
        os._exit(0)

    def trace(frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(here):
            return None
        if event == "line":
            seen.setdefault(path[len(here) + 1 :], set()).add(frame.f_lineno)
        return trace

    signal.signal(signal.SIGALRM, tell)  # an endless loop may be the very bug
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    sys.settrace(trace)
    pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", *job["tests"]])
    tell()


def _try_with_pytest() -> None:
    import contextlib
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
    finished_green = 42  # not what a program that ends the process in mid-test leaves

    def run(tests: list[str]) -> None:
        os.setsid()
        hush = os.open(os.devnull, os.O_WRONLY)
        os.dup2(hush, 1)
        os.dup2(hush, 2)
        os._exit(finished_green if pytest.main([*quiet, *tests]) == 0 else 1)

    def passes(tests: list[str], seconds: float) -> bool:
        child = os.fork()
        if child == 0:
            run(tests)
        until = time.monotonic() + seconds
        ended, status = os.waitpid(child, os.WNOHANG)
        while not ended and time.monotonic() < until:
            time.sleep(0.005)
            ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
        return bool(ended) and os.waitstatus_to_exitcode(status) == finished_green

    originals = {path: (here / path).read_bytes() for path, _ in job["mutants"]}
    end, found = time.monotonic() + job["seconds"], 0
    for number, (path, text) in enumerate(job["mutants"]):
        left = end - time.monotonic()
        if left <= 0 or found >= job["enough"]:
            break
        (here / path).write_bytes(text.encode())
        if passes(job["red"], min(left, job["each_seconds"])) and (
            not job["suite"] or passes(job["suite"], min(end - time.monotonic(), 3 * job["each_seconds"]))
        ):
            print(f"\ngreen: {number}", flush=True)
            found += 1
            end = min(end, time.monotonic() + job["more_seconds"])
        (here / path).write_bytes(originals[path])


def _try_with_node() -> None:
    import contextlib
    import json
    import os
    import pathlib
    import signal
    import subprocess
    import sys
    import time

    job = json.load(sys.stdin)

    def passes(names: list[str], seconds: float) -> bool:
        files = sorted({name.split(" > ")[0] for name in names})
        node = subprocess.Popen(
            ["node", "--test", *files],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return node.wait(max(seconds, 0)) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)  # node leaves the loops of its test files behind
            node.wait()

    originals = {path: pathlib.Path(path).read_bytes() for path, _ in job["mutants"]}
    end, found = time.monotonic() + job["seconds"], 0
    for number, (path, text) in enumerate(job["mutants"]):
        left = end - time.monotonic()
        if left <= 0 or found >= job["enough"]:
            break
        pathlib.Path(path).write_bytes(text.encode())
        if passes(job["red"], min(left, job["each_seconds"])) and (
            not job["suite"] or passes(job["suite"], min(end - time.monotonic(), 3 * job["each_seconds"]))
        ):
            print(f"\ngreen: {number}", flush=True)
            found += 1
            end = min(end, time.monotonic() + job["more_seconds"])
        pathlib.Path(path).write_bytes(originals[path])
