"""Memory as the factory's processes use it: recording is a file, searching asks the owner, starting it where none is."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from infra.errors import FactoryError, Unreachable
from infra.memory import Answer, Cluster, Clusters, Fresh, Health, Ids, Mark, Point, Record, Since, Wanted
from infra.memory.outbox import Outbox, private_folder
from infra.memory.owner import Orders, reachable
from infra.memory.records import admit, point_id
from infra.settings import Settings
from infra.slots import is_held

START_AGAIN_SECONDS = 5.0
"""A process that was started takes up to that long until it holds the owner's lock; no second one is started meanwhile."""
ASK_SECONDS = 600.0
"""Longest wait of a person's command, such as a rebuild."""
ASKED_AT_ONCE = 2_000
"""Points of one question; a consolidation may have put more aside."""
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_log = logging.getLogger(__name__)


class Recorded(BaseModel):
    """What was kept: the point it will be part of, and the record as it was admitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    record: Record


class Memory:
    """The memory of one home. Threads and processes may share it."""

    def __init__(self, orders: Orders, search_seconds: float) -> None:
        self._orders, self._search_seconds = orders, search_seconds
        self._outbox = Outbox(orders.folder / "outbox")

    def record(self, record: Record) -> Recorded:
        """Keep a record for good; when this returns no crash can lose it, owner or not, server or not.

        Raises records.Refused (nothing worth keeping), DiskFull, ConfigError. The index has it within a second when an
        owner runs, else when the next one does.
        """
        admitted = admit(record)
        self.write(admitted)
        return Recorded(id=point_id(admitted), record=admitted)

    def write(self, writing: Record | Mark) -> None:
        """As `record`, for an admitted record and for marks. Raises DiskFull, ConfigError."""
        self._outbox.put(writing)
        if self._orders.url is not None:
            self.keep_running()  # others wait for it

    def search(self, wanted: Wanted) -> Answer:
        """What fits, best first. Raises nothing and takes at most `search_seconds`: without an answer by then it is
        `degraded` and says why."""
        if self.is_empty():
            return Answer()
        try:
            said = self._ask("POST", "/search", self._search_seconds, wanted.model_dump_json())
            return Answer.model_validate_json(said)
        except (FactoryError, OSError, ValidationError) as error:  # also an owner of another version
            _log.warning("memory outcome=degraded reason=%s", error)
            return Answer(degraded=str(error))

    def show(self, name: str) -> Point | None:
        """The point with this id. Raises Unreachable."""
        return self.points([name]).get(name)

    def points(self, ids: Iterable[str], seconds: float = ASK_SECONDS) -> dict[str, Point]:
        """Those that are there, whatever their status. Raises Unreachable."""
        return self._points("/points", ids, seconds)

    def derived(self, ids: Iterable[str]) -> dict[str, Point]:
        """Summaries that were made of any of these points. Raises Unreachable."""
        return self._points("/derived", ids, ASK_SECONDS)

    def stale(self) -> dict[str, Point]:
        """Active points that nobody needs any more. Raises Unreachable."""
        return {} if self.is_empty() else self._found("/stale", None, ASK_SECONDS)

    def _points(self, path: str, ids: Iterable[str], seconds: float) -> dict[str, Point]:
        names = [] if self.is_empty() else [name for name in ids if _ID.fullmatch(name)]
        found: dict[str, Point] = {}
        for start in range(0, len(names), ASKED_AT_ONCE):
            asked = Ids(ids=tuple(names[start : start + ASKED_AT_ONCE]))
            found |= self._found(path, asked.model_dump_json(), seconds)
        return found

    def _found(self, path: str, body: str | None, seconds: float) -> dict[str, Point]:
        found = Answer.model_validate_json(self._ask("POST", path, seconds, body)).found
        return {each.point.id: each.point for each in found}

    def fresh(self, after: int, limit: int) -> Fresh:
        """Points that were written here after a place in the journal, 0 for all. Raises Unreachable."""
        said = self._ask("POST", "/fresh", ASK_SECONDS, Since(after=after, limit=limit).model_dump_json())
        return Fresh.model_validate_json(said)

    def clusters(self, ids: Iterable[str]) -> tuple[Cluster, ...]:
        """What belongs together with these points. Raises Unreachable."""
        said = self._ask("POST", "/clusters", ASK_SECONDS, Ids(ids=tuple(ids)).model_dump_json())
        return Clusters.model_validate_json(said).found

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until the index has all that was written. Raises Unreachable when it is not so far by then."""
        deadline = time.monotonic() + seconds
        while self._outbox.count() or not self.is_empty():
            health = self.health(max(deadline - time.monotonic(), 1.0))
            if health.waiting == 0 and not health.behind:
                return
            if time.monotonic() > deadline:
                reason = health.behind or f"{health.waiting} writings wait"
                raise Unreachable(f"memory is not up to date after {seconds:.0f} s ({reason}); run it again later")
            time.sleep(0.1)

    def rebuild(self) -> int:
        """Make the index anew from the journal; returns how many points it has. Raises Unreachable."""
        points: int = json.loads(self._ask("POST", "/rebuild", ASK_SECONDS))["points"]
        return points

    def health(self, seconds: float = 5.0) -> Health:
        """The state of the owner, which is started where none is. Raises Unreachable."""
        return Health.model_validate_json(self._ask("GET", "/health", seconds))

    def keep_running(self) -> None:
        """Start an owner where none is, and do not wait for it; called now and then, it keeps one alive."""
        if not self.is_empty():
            with suppress(FactoryError, OSError):
                self._ask("GET", "/health", 0.0)

    def stop(self) -> None:
        """End the owner where there is one; whoever needs it starts the next."""
        with suppress(OSError, HTTPException, Unreachable):
            self._asked("POST", "/stop", 2.0, None)

    @property
    def shared(self) -> bool:
        """Whether other machines write to the same index."""
        return self._orders.url is not None

    @property
    def folder(self) -> Path:
        return self._orders.folder

    def is_empty(self) -> bool:
        """Nothing was ever recorded here, and no server can know more."""
        has_any = (self._orders.folder / "journal.jsonl").exists() or self._outbox.count()
        return self._orders.url is None and not has_any

    def _ask(self, method: str, path: str, seconds: float, body: str | None = None) -> str:
        """The owner's answer. Where none listens one is started, and waited for until `seconds` are over."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                return self._asked(method, path, max(left, 0.5), body)
            except TimeoutError:
                raise Unreachable(f"the memory index did not answer in {seconds:.0f} s") from None
            except (OSError, HTTPException):
                self._start()  # none listens, or the one that did was killed
            if left <= 0:
                raise Unreachable(
                    f"the memory index is not up after {seconds:.0f} s; look into {str(self._orders.folder / 'owner.log')!r}"
                )
            time.sleep(min(0.1, max(left, 0)))

    def _asked(self, method: str, path: str, seconds: float, body: str | None) -> str:
        with reachable(self._orders.folder) as place, closing(_Connection(place, seconds)) as connection:
            connection.request(method, path, body.encode() if body is not None else None)
            answer = connection.getresponse()
            status, text = answer.status, answer.read().decode()
        if status != 200:
            raise Unreachable(f"the memory index answers {status}: {text[:300]!r}")
        return text

    def _start(self) -> None:
        """Start an owner in the background, unless there is one or somebody has just started one."""
        folder = self._orders.folder
        private_folder(folder)
        private_folder(folder / "owner")
        handle = os.open(folder / "start", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = os.fstat(handle)
            just_now = before.st_size > 0 and abs(time.time() - before.st_mtime) < START_AGAIN_SECONDS
            if just_now or is_held(folder / "owner"):
                return
            os.pwrite(handle, b"started", 0)
            self._launch()
        except BlockingIOError:
            return
        finally:
            os.close(handle)

    def _launch(self) -> None:
        orders = self._orders.model_dump(mode="json")
        if self._orders.key is not None:
            orders["key"] = self._orders.key.get_secret_value()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.memory.owner"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=_environment(), cwd=self._orders.folder, start_new_session=True,
        )  # fmt: skip
        with suppress(BrokenPipeError), process.stdin or nullcontext() as given:
            if given is not None:
                given.write(json.dumps(orders).encode())  # fits into the pipe, so nobody has to wait for its reader
        threading.Thread(target=process.wait, daemon=True).start()  # reaps it when it has gone to the background


class _Connection(HTTPConnection):
    """HTTP over the owner's socket. `timeout` is the longest wait for each answer."""

    def __init__(self, place: str, timeout: float) -> None:
        super().__init__("memory", timeout=timeout)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._place)


def _environment() -> dict[str, str]:
    """Of the owner: no token of ours, and no mark of a run, which would end with the run."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    root = str(Path(__file__).resolve().parents[2])
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def served(settings: Settings) -> Iterator[Memory | None]:
    """The memory of a machine that works on tickets, or None when it is turned off; its owner ends with it."""
    memory = open_memory(settings) if settings.memory.enabled else None
    try:
        yield memory
    finally:
        if memory is not None:
            memory.stop()


def open_memory(settings: Settings) -> Memory:
    """The memory of this home, on the server of `memory.url` or QDRANT_URL where there is one. Opens and starts nothing."""
    section = settings.memory
    url = section.url or os.environ.get("QDRANT_URL") or None
    key = section.key or (SecretStr(os.environ["QDRANT_API_KEY"]) if os.environ.get("QDRANT_API_KEY") else None)
    orders = Orders(folder=settings.root / "memory", url=url, key=key, embedder=section.embedder,
                    idle_seconds=section.idle_seconds)  # fmt: skip
    return Memory(orders, section.search_seconds)
