"""Finding and ending processes, with real ones."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import processes
from infra.processes import MARK, UNMARKED, descendants, end_run, end_tree, identity, marked

ROOT = Path(__file__).parents[2]
RUN = "11111111-2222-3333-4444-555555555555"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


Start = Callable[..., tuple[int, str, list[int]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a shell script that writes ids to "$PIDS"; returns its id, when it began, and `count` ids it wrote."""
    started = []

    def begin(script: str, count: int = 0, run: str | None = None) -> tuple[int, str, list[int]]:
        notes = tmp_path / "pids"
        environment = {"PATH": os.environ["PATH"], "PIDS": str(notes), **({MARK: run} if run else {})}
        process = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True)
        started.append(process)
        assert wait_until(lambda: len(notes.read_text().split()) == count if notes.exists() else count == 0)
        pids = [int(pid) for pid in notes.read_text().split()] if count else []
        return process.pid, identity(process.pid) or "", pids

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_a_process_is_named_by_its_id_and_when_it_began(start: Start) -> None:
    pid, started, _ = start("exec sleep 60")
    assert started
    assert identity(pid) == started
    assert identity(os.getpid()) != started
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: identity(pid) is None), "a process that nobody waited for yet counts as gone"


def test_descendants_are_found_through_sessions(start: Start) -> None:
    pid, _, (inner,) = start("setsid sh -c 'echo $$ >> \"$PIDS\"; sleep 60; :' & wait", 1)
    assert wait_until(lambda: len(descendants(pid)) >= 2)
    assert inner in descendants(pid)
    assert pid in descendants(os.getpid())


def test_a_whole_tree_ends(start: Start) -> None:
    """RC8."""
    pid, started, pids = start('for i in 1 2 3; do setsid sleep 60 & echo $! >> "$PIDS"; done; sleep 61 & wait', 3)
    assert end_tree(pid, started)
    assert not any(identity(one) for one in [pid, *pids])


def test_what_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    pid, started, (child,) = start("trap '' TERM; sh -c 'echo $$ >> \"$PIDS\"; sleep 60; sleep 60' & wait; sleep 60", 1)
    began = time.monotonic()
    assert end_tree(pid, started, grace_seconds=0.3)
    assert time.monotonic() - began >= 0.3
    assert identity(child) is None


def test_a_tree_that_was_suspended_ends_too(start: Start) -> None:
    """RC8: SIGTERM waits for whoever sleeps by SIGSTOP; SIGKILL does not."""
    pid, started, pids = start('for i in 1 2; do setsid sleep 60 & echo $! >> "$PIDS"; done; sleep 61 & wait', 2)
    for one in (*pids, pid):
        os.kill(one, signal.SIGSTOP)
    assert end_tree(pid, started, grace_seconds=0.2)
    assert not any(identity(one) for one in [pid, *pids])


def test_a_daemon_is_found_by_its_mark_when_its_parents_are_gone(start: Start) -> None:
    pid, _, (daemon,) = start('(setsid sleep 60 & echo $! >> "$PIDS"); exit', 1, run=RUN)
    assert wait_until(lambda: identity(pid) is None)
    assert marked(RUN) == [daemon]
    assert processes.abandoned_runs()[RUN] == [daemon]
    assert end_run(RUN)
    assert (identity(daemon), marked(RUN)) == (None, [])


def test_the_mark_of_a_living_leader_finds_its_daemons(start: Start) -> None:
    pid, started, (daemon,) = start('(setsid sleep 60 & echo $! >> "$PIDS"); sleep 60; :', 1, run=RUN)
    assert daemon not in descendants(pid)
    assert end_tree(pid, started)
    assert identity(daemon) is None


def test_a_recycled_id_is_left_alone(start: Start) -> None:
    pid, started, _ = start("exec sleep 60")
    assert end_tree(pid, f"{started}0")
    assert not processes.send(pid, f"{started}0", signal.SIGKILL)
    assert identity(pid) == started


def test_oneself_ones_ancestors_and_the_first_process_are_spared() -> None:
    for pid in (os.getpid(), os.getppid(), 1):
        assert not end_tree(pid, identity(pid) or "")


def test_a_fork_takes_the_mark_of_its_run(start: Start) -> None:
    script = (
        "import os, time; from infra.processes import take_mark\n"
        f"if os.fork() == 0: take_mark('{RUN}'); os.system('sleep 60')\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: UNMARKED}
    with subprocess.Popen([sys.executable, "-P", "-c", script], env=environment, start_new_session=True) as forking:
        started = identity(forking.pid) or ""
        assert wait_until(lambda: len(marked(RUN)) >= 2), "the fork and what it started"
        assert forking.pid not in marked(RUN)
        assert RUN not in processes.abandoned_runs(), "its spawner lives"
        assert end_run(RUN)
        assert end_tree(forking.pid, started)


def test_orphans_come_to_the_process_that_adopts_them() -> None:
    """Even one that shook off its session and its environment."""
    script = (
        "import subprocess; from infra.processes import *; import os; adopt_orphans()\n"
        "out = subprocess.check_output(['sh', '-c', '(env -i setsid sleep 60 >/dev/null & echo $!)'])\n"
        "print(descendants(os.getpid()) == [int(out)], end_children(), descendants(os.getpid()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert result.stdout.strip() == "True True []", result.stderr


def test_a_child_dies_with_its_parent() -> None:
    script = (
        "import os, signal, time; from infra.processes import die_with_parent; parent = os.getpid()\n"
        "if (child := os.fork()) == 0: die_with_parent(signal.SIGKILL, parent); print(os.getpid(), flush=True); time.sleep(60)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-P", "-c", script], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
        assert wait_until(lambda: identity(child) is None)


# --- what every child is given ------------------------------------------------------------------------------------------

STARTERS = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell"}
FORBIDDEN = {"system", "popen", "execv", "execvp", "execl", "execlp", "spawnv", "spawnl", "posix_spawn"}
INSIDE = {"infra/mutation_runs.py:_try_with_node", "infra/mutation_runs.py:passes", "infra/llm/local.py:_serve_once"}
"""Started by programs that were given nothing of ours themselves."""
OURSELVES = {"deployments/worker.py:_spawn"}
"""The factory's own processes, which work with its settings."""


def starts() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the four packages that starts a program, with `file:function`."""
    for package in ("infra", "tasks", "flows", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for call in ast.walk(function):
                        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _starts(call.func):
                            yield f"{path.relative_to(ROOT)}:{function.name}", call


def _starts(name: ast.Attribute) -> bool:
    module = ast.unparse(name.value)
    if module == "os":
        return name.attr in FORBIDDEN
    return module in {"subprocess", "asyncio"} and name.attr in STARTERS and ast.unparse(name) != "asyncio.run"


def test_every_program_is_started_with_an_environment_that_was_chosen_for_it() -> None:
    """WS7: no call leaves ours, which holds tokens, to a child; only the factory's own processes get all of it."""
    found = list(starts())
    assert len(found) > 15, "the search itself works"
    given = {place: ast.unparse(next((k.value for k in call.keywords if k.arg == "env"), ast.Constant(None))) for place, call in found}  # fmt: skip
    assert {place for place, environment in given.items() if environment == "None"} <= INSIDE
    assert {place for place, call in found if "**os.environ" in ast.unparse(call)} <= OURSELVES
