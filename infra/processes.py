"""Which process is which, and ending a whole tree of them. Knows neither Prefect nor tickets.

A run's processes are found by parent, by process group, and by the mark DARKFACTORY_RUN in the environment they were
started with; the mark stays when a process makes a session of its own and outlives its parents. Linux; on other systems
the mark is not readable, and a process that left its group and its parents is not found.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from infra.llm.local import process_started

MARK = "DARKFACTORY_RUN"
"""Environment variable that names the run a process belongs to."""
UNMARKED = "-" * 36
"""The mark of a process that forks runs, as long as a run's id: `take_mark` writes over it."""
GRACE_SECONDS = 5.0
FORCE_SECONDS = 10.0
"""How long processes may take to go after SIGKILL: one in an uninterruptible wait goes when that is over."""

_POLL_SECONDS = 0.02
_SLOWEST_POLL_SECONDS = 0.2
_PROC = Path("/proc")
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


class Process(NamedTuple):
    """A line of the process table; `started` as `identity` words it, `dead`: only its exit status is left."""

    pid: int
    parent: int
    group: int
    started: str
    dead: bool


def identity(pid: int) -> str | None:
    """When the process began: with `pid` it names one process for good. None: there is none, or only its exit status."""
    return process_started(pid)


def descendants(pid: int) -> list[int]:
    """Living children of `pid`, their children, and so on."""
    return sorted(_descendants({pid}, _table()))


def children(pid: int) -> list[int]:
    """Living children of `pid`."""
    return sorted(one.pid for one in _table().values() if one.parent == pid and not one.dead)


def marked(run_id: str) -> list[int]:
    """Living processes that carry the mark of this run."""
    return marked_runs().get(run_id, [])


def marked_runs() -> dict[str, list[int]]:
    """Living processes that carry a mark, by run."""
    found: dict[str, list[int]] = {}
    for pid in _pids():
        run = _mark(pid)
        if run is not None and identity(pid):
            found.setdefault(run, []).append(pid)
    return found


def abandoned_runs() -> dict[str, list[int]]:
    """As `marked_runs`, without the runs that a living worker of this machine looks after."""
    table = _table()
    return {run: pids for run, pids in marked_runs().items() if not any(_is_looked_after(pid, table) for pid in pids)}


def _is_looked_after(pid: int, table: Mapping[int, Process]) -> bool:
    """Whether an ancestor forks runs."""
    return any(_written_mark(ancestor) == UNMARKED for ancestor in _ancestors(pid, table))


def end_tree(pid: int, started: str, grace_seconds: float = GRACE_SECONDS) -> bool:
    """End a process, its group, its descendants and all that carry its mark: SIGTERM, SIGKILL after the grace.

    Never signals this process, its ancestors or pid 1. Takes at most the grace plus FORCE_SECONDS; returns whether all
    are gone.
    """
    if pid in _spared():
        return False
    run = _mark(pid) if identity(pid) == started else None
    return _end(lambda seen: _members(pid, started, run, seen), grace_seconds)


def end_run(run_id: str, grace_seconds: float = GRACE_SECONDS) -> bool:
    """As `end_tree`, for all that carry this run's mark, and what they started."""
    return _end(lambda seen: _members(0, "", run_id, seen), grace_seconds)


def end_children(grace_seconds: float = GRACE_SECONDS) -> bool:
    """End all descendants of this process; returns whether all are gone. They remain to be waited for."""
    return _end(lambda _seen: _descendants({os.getpid()}, _table()), grace_seconds)


def _members(pid: int, started: str, run: str | None, seen: Mapping[int, str]) -> dict[int, str]:
    """Who belongs to the tree now. `seen`: who belonged to it before, so that what they start is found, too."""
    table = _table()
    roots = {one for one, began in seen.items() if one in table and table[one].started == began}
    leader = table.get(pid)
    if leader and leader.started == started:
        # a group has its number from its first process: while that one is there, the number cannot be another group's
        roots |= {pid, *(one.pid for one in table.values() if one.group == pid)}
    if run:
        roots |= set(marked(run))
    living = {one: table[one].started for one in roots if one in table and not table[one].dead}
    return living | _descendants(roots, table)


def _end(find: Callable[[Mapping[int, str]], dict[int, str]], grace_seconds: float) -> bool:
    """Signal what `find` finds until it is gone, or until it is clear that it does not go."""
    spared, seen, asked = _spared(), dict[int, str](), set[tuple[int, str]]()
    began, pause = time.monotonic(), _POLL_SECONDS
    while True:
        seen |= {pid: started for pid, started in find(seen).items() if pid not in spared}
        left = {pid: started for pid, started in seen.items() if identity(pid) == started}
        passed = time.monotonic() - began
        if not left or passed > grace_seconds + FORCE_SECONDS:
            return not left
        for pid, started in left.items():
            if passed >= grace_seconds:
                send(pid, started, signal.SIGKILL)
            elif (pid, started) not in asked:
                asked.add((pid, started))
                send(pid, started, signal.SIGTERM)
        time.sleep(pause)
        pause = min(pause * 1.5, _SLOWEST_POLL_SECONDS)


def send(pid: int, started: str, number: signal.Signals) -> bool:
    """Signal exactly the process that began then; False when it is gone. Raises PermissionError for one of another user."""
    if sys.platform != "linux":
        return identity(pid) == started and _kill(pid, number)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if identity(pid) != started:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _kill(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have this process get the signal when `parent` dies, however it dies (Linux); at once when it is dead already."""
    if sys.platform == "linux":
        _prctl(_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs, so that none of them gets out of sight (Linux)."""
    if sys.platform == "linux":
        _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def take_mark(run_id: str) -> None:
    """Carry a run's mark in this forked process and in what it starts.

    The system shows the environment a program was started with, which a fork shares with its parent: so the text is
    written over where it lies. That takes a program that was started with the mark UNMARKED.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(MARK.encode())
    room, wanted = len(UNMARKED), run_id.encode()
    if address and len(wanted) <= room and ctypes.string_at(address) == UNMARKED.encode():
        ctypes.memmove(address, wanted.ljust(room, b"\0"), room)
    os.environ[MARK] = run_id


def _written_mark(pid: int) -> str | None:
    """The mark in the environment the program was started with, UNMARKED included."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # gone, or another user's
        return None
    prefix = f"{MARK}=".encode()
    found = next((entry for entry in environment.split(b"\0") if entry.startswith(prefix)), None)
    return found.removeprefix(prefix).decode(errors="replace") if found else None


def _mark(pid: int) -> str | None:
    mark = _written_mark(pid)
    return mark if mark not in (None, "", UNMARKED) else None


def _spared() -> set[int]:
    """This process, its ancestors, and what the system starts with."""
    return {0, 1, os.getpid(), *_ancestors(os.getpid(), _table())}


def _ancestors(pid: int, table: Mapping[int, Process]) -> list[int]:
    found: list[int] = []
    while (process := table.get(pid)) and process.parent > 0 and process.parent not in found:
        found.append(pid := process.parent)
    return found


def _descendants(roots: set[int], table: Mapping[int, Process]) -> dict[int, str]:
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, str] = {}
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if not child.dead and child.pid not in found:
                found[child.pid] = child.started
                waiting.append(child.pid)
    return found


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()] if _PROC.is_dir() else []  # noqa: PTH208  names only: no path object for each


def _table() -> dict[int, Process]:
    if not (_PROC / "self" / "stat").exists():
        return _table_of_ps()
    found = {}
    for pid in _pids():
        with suppress(OSError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            found[pid] = Process(pid, int(fields[1]), int(fields[2]), fields[19], fields[0] in "ZX")
    return found


def _table_of_ps() -> dict[int, Process]:
    columns = ["ps", "-axo", "pid=,ppid=,pgid=,state=,lstart="]
    found = {}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    listed = subprocess.run(columns, env=environment, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        pid, parent, group, state, started = line.split(maxsplit=4)
        found[int(pid)] = Process(int(pid), int(parent), int(group), started.strip(), state.startswith("Z"))
    return found
