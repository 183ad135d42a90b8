"""A warm program that forks one guarded process per flow run: imports are paid once, and nothing of a run outlives it.

`python -m deployments.run_process PACKAGE...` plays three parts. The *spawner* imports every module of the packages and
then takes orders, one JSON object per line on its standard input. For each run it forks a *guard*, which adopts all
orphans of the run, keeps its output within bounds and ends whatever is left when the *run*, its child, is over. On the
standard output guard and spawner say, as JSON lines, when a run began and how it ended. When the worker dies, the
spawner does, and each guard ends its run first.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import runpy
import selectors
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from infra import processes

LOG_BYTES = 5_000_000
"""Output that is kept of a run: the newest file of at most this size, and the one before it (`.log.1`)."""
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
LOST = -signal.SIGKILL
"""Status of a run whose guard was killed."""

_CHUNK = 65_536
_CHUNKS = 64
"""Read at a time, so that a flood of output does not keep a guard from its other duties."""
_PATIENCE_SECONDS = 30.0
"""How long a guard or the spawner tries to get rid of what does not go, before it says so and ends."""


class Order(BaseModel):
    """One line to the spawner: `start` a run, or `end` the one that was started with this number.

    A run that is tried again has the same id, so it is the number that tells two starts apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: Literal["start", "end"]
    number: int
    run: str = ""
    environment: dict[str, str] = {}
    folder: str = "/"
    log: str = os.devnull


class Answer(BaseModel):
    """One line from the spawner: it is `ready`, a run is `started`, or it is `over`.

    `status` is the exit code, negative for a signal; `clean`: its guard saw every process of the run end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: Literal["ready", "started", "over"]
    number: int = 0
    pid: int = 0
    started: str = ""
    status: int = 0
    clean: bool = False


def main(packages: Sequence[str]) -> None:
    """The spawner; the forks return into this function, so that each of them ends like a program of its own."""
    orders, answers = _take_pipes()
    processes.adopt_orphans()
    _preload(packages)
    spawner = os.getpid()
    order = _Spawner(orders, answers).serve()
    if order is None:
        return
    guard = _Guard(order, answers)
    if guard.begin(spawner):
        os._exit(guard.watch())
    _be_the_run(order)


def _take_pipes() -> tuple[int, int]:
    """Orders and answers, moved away from the standard streams, where anything may read and print."""
    orders, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def _preload(packages: Sequence[str]) -> None:
    """Import all modules of the packages. What cannot be imported now fails in the run that needs it, with its reason."""
    for package in packages:
        root = importlib.import_module(package)
        names = [found.name for found in pkgutil.iter_modules(getattr(root, "__path__", ()), f"{package}.")]
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                with suppress(OSError):  # the log is full
                    print(f"cannot import {name!r} ahead of its runs: {error}", file=sys.stderr, flush=True)
    gc.collect()
    gc.freeze()  # the collector must not write to memory that all runs share


class _Signals:
    """Signals as bytes of a pipe, so that one wait covers them and everything else."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._numbers = numbers
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def arrived(self) -> set[int]:
        try:
            return set(os.read(self.reading, _CHUNK))
        except BlockingIOError:
            return set()

    def close(self) -> None:
        """Leave the signals to their defaults, as in a new program."""
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        os.close(self.reading)
        os.close(self._writing)


class _Spawner:
    """Takes orders and keeps an eye on its guards."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers = orders, answers
        self._guards: dict[int, int] = {}
        self._unread = b""

    def serve(self) -> Order | None:
        """Returns an order in the process that was forked for it, and None when there are no more orders."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the worker decides
        signals = _Signals(signal.SIGCHLD)
        say(self._answers, Answer(what="ready"))
        while (lines := self._wait(signals)) is not None:
            for line in lines:
                order = Order.model_validate_json(line)
                if order.what == "end":
                    self._end(order.number)
                elif self._fork(order):
                    signals.close()
                    os.close(self._orders)
                    return order
        self._wind_up()
        return None

    def _wait(self, signals: _Signals) -> list[bytes] | None:
        """The complete lines that arrived; None at the end."""
        with selectors.DefaultSelector() as selector:
            for source in (self._orders, signals.reading):
                selector.register(source, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select()}
        if signals.reading in ready and signals.arrived():
            self._reap()
        if self._orders not in ready:
            return []
        data = os.read(self._orders, _CHUNK)
        *lines, self._unread = (self._unread + data).split(b"\n")
        return lines if data else None

    def _fork(self, order: Order) -> bool:
        pid = os.fork()
        if pid:
            self._guards[pid] = order.number
        return pid == 0

    def _end(self, number: int) -> None:
        for pid, guarded in self._guards.items():
            if guarded == number:
                os.kill(pid, signal.SIGTERM)  # not waited for yet, so the number is still its own

    def _reap(self) -> None:
        """A guard that was killed leaves orphans, which come to us, and its answer."""
        for pid, status in reaped():
            number = self._guards.pop(pid, None)
            if number is not None and status != 0:
                self._end_strays()
                say(self._answers, Answer(what="over", number=number, status=LOST))

    def _end_strays(self) -> None:
        """End children that are no guards; a run dies with its guard by itself."""
        mine = os.getpid()
        for pid in processes.children(mine):
            if pid not in self._guards and (started := processes.identity(pid)):
                processes.end_tree(pid, started, grace_seconds=0)

    def _wind_up(self) -> None:
        """The worker is gone, or wants us to be: every guard ends its run."""
        for number in list(self._guards.values()):
            self._end(number)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._guards and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)


class _Guard:
    """Stands between the spawner and one run, and goes last."""

    def __init__(self, order: Order, answers: int) -> None:
        self._order, self._answers = order, answers
        self._signals = _Signals(signal.SIGCHLD, signal.SIGTERM)
        self._deadline: float | None = None
        self._status: int | None = None

    def begin(self, spawner: int) -> bool:
        """Fork the run. False in the run's own process."""
        os.setsid()
        processes.take_mark(self._order.run)
        processes.adopt_orphans()
        processes.die_with_parent(signal.SIGTERM, spawner)
        reading, writing = os.pipe()
        guard = os.getpid()
        self._run = os.fork()
        if self._run == 0:
            processes.die_with_parent(signal.SIGKILL, guard)
            os.setsid()
            self._signals.close()
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            for own in (reading, writing, self._answers):
                os.close(own)
            return False
        os.close(writing)
        self._log = _Log(reading, Path(self._order.log))
        return True

    def watch(self) -> int:
        """Until the run and all it started are gone. Returns 0: how it ended was said."""
        started = processes.identity(self._run) or ""
        say(self._answers, Answer(what="started", number=self._order.number, pid=self._run, started=started))
        while self._status is None:
            self._wait()
        clean = self._end_the_rest()
        self._log.copy()
        say(self._answers, Answer(what="over", number=self._order.number, status=self._status, clean=clean))
        return 0

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for source in (self._signals.reading, *self._log.sources):
                selector.register(source, selectors.EVENT_READ)
            selector.select(None if self._deadline is None else max(self._deadline - time.monotonic(), 0))
        self._log.copy()
        if signal.SIGTERM in self._signals.arrived() and self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS
            os.kill(self._run, signal.SIGTERM)
        self._reap()
        if self._status is None and self._deadline is not None and time.monotonic() >= self._deadline:
            os.kill(self._run, signal.SIGKILL)
            self._deadline = time.monotonic() + GRACE_SECONDS

    def _reap(self) -> bool:
        """Whether nothing is left to wait for: the kernel's word, since all orphans are ours."""
        for pid, status in reaped():
            if pid == self._run:
                self._status = status
        return not has_children()

    def _end_the_rest(self) -> bool:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._reap():
            if time.monotonic() > deadline:
                return False
            processes.end_children(GRACE_SECONDS)
            self._log.copy()
        return True


class _Log:
    """Copies a pipe into a file; a full file becomes the old one."""

    def __init__(self, reading: int, path: Path) -> None:
        os.set_blocking(reading, False)
        self._reading, self._path = reading, path
        self.sources = [reading]
        self._file, self._size = os.open(os.devnull, os.O_WRONLY), 0
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_to(os.O_APPEND)
            self._size = os.fstat(self._file).st_size

    def _write_to(self, how: int) -> None:
        """The new file is open before the old one goes: its number must never become another file's."""
        opened = os.open(self._path, os.O_WRONLY | os.O_CREAT | how, 0o600)
        os.close(self._file)
        self._file = opened

    def copy(self) -> None:
        """Take what is there. A full disk, or a folder that cannot be written, loses output, never the run (OB4)."""
        for _ in range(_CHUNKS):
            try:
                data = os.read(self._reading, _CHUNK)
            except BlockingIOError:
                return
            if not data:
                self.sources = []
                return
            self._make_room(len(data))
            with suppress(OSError):
                self._size += os.write(self._file, data)

    def _make_room(self, size: int) -> None:
        if self._size + size > LOG_BYTES:
            with suppress(OSError):
                self._path.replace(f"{self._path}.1")
                self._write_to(os.O_TRUNC)
                self._size = os.write(self._file, b"[older output is in the file .log.1, or left out]\n")


def _be_the_run(order: Order) -> None:
    """Exactly what `python -m prefect.engine RUN` does, in this warm process."""
    from prefect.context import refresh_global_settings_context

    os.environ.clear()
    os.environ.update(order.environment)
    os.environ[processes.MARK] = order.run
    os.chdir(order.folder)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it was opened as text
    signal.signal(signal.SIGINT, signal.default_int_handler)
    refresh_global_settings_context()
    sys.argv = ["prefect.engine", order.run]
    sys.modules.pop("prefect.engine", None)  # runpy warns about a module that was imported before
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def reaped() -> list[tuple[int, int]]:
    """Children that ended, with their exit codes (negative for a signal)."""
    found = []
    with suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((one[0], os.waitstatus_to_exitcode(one[1])))
    return found


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def say(answers: int, answer: Answer) -> None:
    """One line, shorter than what a pipe takes at once. Nobody listens any more: then nobody needs to know."""
    with suppress(BrokenPipeError):
        os.write(answers, answer.model_dump_json().encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
