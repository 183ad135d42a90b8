"""Kill -9 at every point of a repair where something becomes durable, and go on: `python tests/faults/repair_kill.py`.

Real processes on a real ledger, repository and disk. Each process is killed at the first point that no process was killed at
before: before a transaction with a write commits, and before a file is renamed, linked or removed or git pushes. After each
kill the machine has to be in the old or the new release, whole; at the end the repair has to be kept, or taken back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from sqlalchemy import event
from sqlalchemy.engine import Engine

from infra.database import Database
from infra.postgres import ensure_postgres, open_databases, stop_postgres
from infra.releases import INSTALLED
from infra.settings import load_settings
from tasks import repair as machine
from tasks import services
from tests.repairs import FIXED, SIGNATURE, Works

Story = Literal["kept", "rolled-back"]
FILE_EVENTS = ("os.rename", "os.symlink", "os.remove")
SECONDS = 120
MOST_PROCESSES = 400


class Points:
    """The points of one process, by name: the stage, what is about to happen, and which time it is in this stage."""

    def __init__(self, seen: Path, files: bool) -> None:
        self._seen, self._files = seen, files
        self._known = set(seen.read_text().splitlines()) if seen.exists() else set()
        self._stage, self._counts = "", Counter[str]()
        self._writing: set[int] = set()

    def arm(self) -> None:
        for stage, step in machine.STAGES.items():
            machine.STAGES[stage] = self._named(stage, step)
        event.listen(Engine, "before_cursor_execute", self._executes)
        event.listen(Engine, "commit", self._commits)
        if self._files:
            sys.addaudithook(self._audited)

    def _named(self, stage: str, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        async def named(repair: Any) -> Any:
            if stage != self._stage:
                self._stage, self._counts = stage, Counter()
            return await step(repair)

        return named

    def _executes(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if re.match(r"\s*(insert|update|delete)", statement, re.IGNORECASE):
            self._writing.add(id(connection))

    def _commits(self, connection: Any) -> None:
        if id(connection) in self._writing:
            self._writing.discard(id(connection))
            self._at("commit")

    def _audited(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in FILE_EVENTS:
            self._at(name)
        elif name == "subprocess.Popen" and {"push", "update-ref"} & {str(each) for each in arguments[1]}:
            self._at("git")

    def _at(self, what: str) -> None:
        self._counts[what] += 1
        point = f"{self._stage} {what} {self._counts[what]}"
        if point not in self._known:
            with self._seen.open("a") as file:
                file.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def live(works: Works, story: Story, points: Points | None) -> None:
    """The life of one process: look again and again until the repair ended. Agents and runs are played in between."""
    if points is not None:
        points.arm()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        asyncio.run(_look())
        newest = services.repairs().newest(1)[0]
        if newest.stage == "ended":
            return
        if newest.stage == "watch" and story == "kept":
            works.succeed(4)
        elif newest.stage == "watch":
            works.fail(3, "KeyError in works.scale.share: KEY", newest.new_sha or "")
    raise TimeoutError(newest)


async def _look() -> None:
    await machine.find_signals.fn()
    await machine.advance_repairs.fn()


def begin(works: Works) -> None:
    """A failure that came often enough, its ticket, and what the agents leave."""
    works.succeed(3)
    works.fail(3)
    asyncio.run(_look())
    works.propose(services.repairs().newest(1)[0], {"works/scale.py": FIXED})


def forked(action: Callable[[], None]) -> int:
    """Run it in a process of its own; its status, negative when it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            services.close()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole(works: Works, new: str) -> str:
    """The release that runs now; fails unless it is the old one or all of the new one."""
    current = works.releases.current()
    assert current in (INSTALLED, new), f"{current!r} is neither the old nor the new release"
    if current == new:
        folder = works.releases.folder / new
        there = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.py")}
        wanted = {path: works.text(path, new) for path in there}
        assert there == wanted, "the release is not what was merged"
        assert there["works/scale.py"] == FIXED
    return current


def run(works: Works, story: Story, files: bool) -> dict[str, int]:
    """Kill until a process gets through. Returns how many were killed, and how often the machine was found on which release."""
    assert forked(lambda: begin(works)) == 0
    seen, found = works.folder / "points", Counter[str]()
    for _ in range(MOST_PROCESSES):
        code = forked(lambda: live(works, story, Points(seen, files)))
        new = _new_sha(works)
        found["new" if whole(works, new) == new and new else "old"] += 1
        if code == 0:
            _check_end(works, story, new)
            return {"killed": len(seen.read_text().splitlines()), **found}
        assert code == -signal.SIGKILL, f"a process ended with {code}"
    raise AssertionError(f"no process got through in {MOST_PROCESSES}")


def _new_sha(works: Works) -> str:
    with Database(open_databases(load_settings()).ledger) as database:
        from infra.repairs import Repairs

        return Repairs(database).newest(1)[0].new_sha or ""


def _check_end(works: Works, story: Story, new: str) -> None:
    with Database(open_databases(load_settings()).ledger) as database:
        from infra.repairs import Repairs

        repairs = Repairs(database)
        (one,) = [each for each in repairs.newest() if each.signature == SIGNATURE]
        assert (one.stage, one.outcome) == ("ended", story), one
        assert repairs.state().wanted == (new if story == "kept" else INSTALLED)
        switch = [line for line in repairs.journal(one.id) if line.stage == "switch"]
        assert switch[0].phase == "before"
        assert (switch[0].old_sha, switch[0].new_sha) == (INSTALLED, new)
    assert works.releases.current() == (new if story == "kept" else INSTALLED)
    assert (works.text("works/scale.py") == FIXED) == (story == "kept")
    subjects = subprocess.check_output(["git", "log", "--format=%s", "main"], cwd=works.remote, text=True)
    assert subjects.count("Merge branch") == 1
    assert subjects.count("Revert repair") == (story == "rolled-back")
    assert len(list(works.board.glob("*.md"))) == 1
    assert not list(works.releases.folder.glob(".new-*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only-commits", action="store_true", help="the boundaries of stages, without what is inside them"
    )
    parser.add_argument(
        "--database", help="postgresql://… of an empty database; default: an embedded server of its own"
    )
    parser.add_argument("--story", choices=("kept", "rolled-back"), action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="darkfactory-repair-kill-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        url = arguments.database or ensure_postgres(root / "postgres")
        try:
            for story in arguments.story or ("kept", "rolled-back"):
                works = Works(root / story, _fresh(url, story) if not arguments.database else url)
                os.environ.update(works.environment)
                with Database(open_databases(load_settings()).ledger) as database:
                    database.migrate()
                started = time.monotonic()
                found = run(works, story, not arguments.only_commits)
                print(f"{story}: {found} in {time.monotonic() - started:.0f} s", flush=True)
        finally:
            if not arguments.database:
                stop_postgres(root / "postgres")


def _fresh(url: str, story: str) -> str:
    import psycopg

    name = f"repair_{story.replace('-', '_')}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return url.removesuffix("/postgres") + f"/{name}"


if __name__ == "__main__":
    main()
