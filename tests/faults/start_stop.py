"""RC8 as a script: starts and stops many agent-like sessions, then counts the processes, worktrees and locks that are left.

    python tests/faults/start_stop.py --cycles 1000

A session is a forked process with the mark of its run that holds the lock of its ticket, makes a worktree of a mirror
and runs a command in the sandbox; the command starts daemons, the session itself starts two more. By turns a session
ends by itself, is ended as a tree, or is killed (its tree is then searched for by its mark); half of these come at any
moment, also while it starts. Ends with status 0 when nothing is left.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from infra import processes  # noqa: E402  found beside this script's folder
from infra.git import Mirror  # noqa: E402
from infra.sandbox import Bubblewrap, Limits, Sandbox  # noqa: E402
from infra.slots import is_held, sole  # noqa: E402

LANES = 2
LONGEST_SECONDS = 60.0
SETTLE_SECONDS = 10.0
ENDINGS = ("by itself", "ended", "killed")
NAP = f"3600.{os.getpid():06d}"
"""In every command line that sleeps, so that also those without a mark are recognised."""
DAEMONS = 'for i in 1 2 3; do (setsid sleep "$NAP" &) ; done; sh -c "trap \'\' TERM; sleep $NAP; sleep $NAP" &'
OUTSIDE = '(setsid sleep "$NAP" > /dev/null 2>&1 &); setsid sh -c "trap \'\' HUP; exec sleep $NAP" > /dev/null 2>&1 &'


class Place(NamedTuple):
    """Where the sessions of one go work."""

    home: Path
    mirror: Path
    sha: str
    nap: str

    def lock(self, ticket: str) -> Path:
        return self.home / "run" / "tickets" / ticket

    def is_locked(self, ticket: str) -> bool:
        """A session that was killed early never came to its lock."""
        return self.lock(ticket).is_dir() and is_held(self.lock(ticket))

    @property
    def worktrees(self) -> Path:
        return self.home / "worktrees"


class Outcome(NamedTuple):
    """One cycle. `left`: processes with its mark right after its end; `held`: its lock was still taken."""

    ending: str
    left: int
    held: bool


def make_place(home: Path, nap: str) -> Place:
    """A repository with one commit, and its mirror."""
    source = home / "source"
    source.mkdir(parents=True)
    (source / "README.md").write_text("# Shop\n")
    name = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*name, "commit", "--quiet", "-m", "Begin"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    mirror = Mirror.open(home / "repos", "shop", str(source))
    return Place(home, mirror.path, mirror.base(None)[1], nap)


def cycle(place: Place, sandbox: Sandbox, number: int) -> Outcome:
    """Start one session, end it in its way, and look at once for what is left."""
    ending, run, ticket = ENDINGS[number % len(ENDINGS)], str(uuid4()), f"ticket-{number}"
    pid = os.fork()
    if pid == 0:
        session(place, sandbox, run, ticket, stays=ending != "by itself")
    started = processes.identity(pid) or ""
    if ending == "by itself":
        _wait(pid)
    else:
        _at_some_moment(place, ticket, surprised=bool(number // len(ENDINGS) % 2))
        _stop(pid, started, ending, run)
    processes.end_run(run)
    return Outcome(ending, len(processes.marked(run)), place.is_locked(ticket))


def _stop(pid: int, started: str, ending: str, run: str) -> None:
    if ending == "ended":
        processes.end_tree(pid, started)
    else:
        processes.send(pid, started, signal.SIGKILL)
    _wait(pid)


def _wait(pid: int) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _at_some_moment(place: Place, ticket: str, surprised: bool) -> None:
    """Any time of its start, or when its daemons are there."""
    if surprised:
        time.sleep(random.uniform(0, 0.3))
        return
    ready, deadline = place.worktrees / ticket / "agent" / "ready", time.monotonic() + LONGEST_SECONDS
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def session(place: Place, sandbox: Sandbox, run: str, ticket: str, stays: bool) -> None:
    """What a flow run's process does with a ticket; never returns."""
    status = 1
    try:
        os.setsid()
        processes.take_mark(run)
        with suppress(asyncio.CancelledError), sole(place.lock(ticket), ticket):
            subprocess.run(["sh", "-c", OUTSIDE], env={**os.environ, "NAP": place.nap}, check=True)
            asyncio.run(_work(place, sandbox, ticket, stays))
        status = 0
    finally:
        os._exit(status)


async def _work(place: Place, sandbox: Sandbox, ticket: str, stays: bool) -> None:
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    command = f"{DAEMONS}\necho > ready\n" + ('sleep "$NAP"' if stays else ":")
    with Mirror(place.mirror).worktree(place.worktrees, ticket, "agent", place.sha) as worktree:
        await sandbox.run(command, worktree=worktree.path, environment={"NAP": place.nap})


def naps(nap: str) -> list[int]:
    """Processes with the nap in their command line, marked or not."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and nap.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def settled(count: Callable[[], int]) -> int:
    """The count when it is zero, or after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := count()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def run_all(place: Place, cycles: int) -> list[Outcome]:
    """All cycles, LANES at a time."""
    outcomes = []
    began = time.monotonic()
    with multiprocessing.get_context("fork").Pool(LANES) as lanes:
        work = partial(cycle, place, Bubblewrap(Limits(timeout_seconds=LONGEST_SECONDS)))
        for outcome in lanes.imap_unordered(work, range(cycles)):
            outcomes.append(outcome)
            if len(outcomes) % 50 == 0:
                print(f"{len(outcomes)} of {cycles} after {time.monotonic() - began:.0f} s", flush=True)
    return outcomes


def report(place: Place, outcomes: list[Outcome]) -> bool:
    """Print the counts; True when nothing is left."""
    tickets = [f"ticket-{number}" for number in range(len(outcomes))]
    swept = len(Mirror(place.mirror).sweep(place.worktrees, keep=set()))
    listed = subprocess.check_output(["git", "worktree", "list", "--porcelain"], cwd=place.mirror, text=True)
    left = {
        "processes right after their session": sum(outcome.left for outcome in outcomes),
        "locks right after their session": sum(outcome.held for outcome in outcomes),
        "child processes left": settled(lambda: len(naps(place.nap)) + len(processes.children(os.getpid()))),
        "worktrees left": sum(1 for _ in place.worktrees.iterdir()) + listed.count("worktree ") - 1,
        "locks left": sum(place.is_locked(ticket) for ticket in tickets),
    }
    print("sessions:", dict(Counter(outcome.ending for outcome in outcomes)))
    print(f"worktrees of killed sessions, swept: {swept}")
    for what, count in left.items():
        print(f"{what}: {count}")
    return not any(left.values())


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts and stops agent-like sessions; RC8.")
    parser.add_argument("--cycles", type=int, default=1000)
    cycles = parser.parse_args().cycles
    if os.environ.get(processes.MARK) != processes.UNMARKED:  # only a program started with it can mark its forks
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, processes.MARK: processes.UNMARKED})
    with tempfile.TemporaryDirectory(prefix="start-stop-") as folder:
        place = make_place(Path(folder).resolve(), NAP)
        try:
            return 0 if report(place, run_all(place, cycles)) else 1
        finally:
            for pid in naps(NAP):
                processes.end_tree(pid, processes.identity(pid) or "", grace_seconds=0)


if __name__ == "__main__":
    sys.exit(main())
