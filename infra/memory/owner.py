"""The one process of a home that holds the index: takes in what waits, answers searches, and ends when nobody asks.

`python -m infra.memory.owner` reads its orders from standard input and goes to the background. A kernel lock, taken before
anything is opened, makes sure that there is one. It can be killed at any moment: whoever needs it starts the next.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from infra import logs
from infra.errors import CapacityUnavailable, FactoryError, InfraError, Unreachable
from infra.files import write_atomically
from infra.memory import Answer, Clusters, Fresh, Health, Ids, Point, Recalled, Since, Wanted
from infra.memory.embedding import Choice, open_embedder
from infra.memory.outbox import Journal, Outbox, private_folder
from infra.slots import sole

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from infra.memory.index import Index

BATCH = 64
FILLED_AT_ONCE = 512
"""The engine syncs its files after each."""
POLL_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 60.0
REQUEST_SECONDS = 5.0
"""Longest wait for a Qdrant server."""
LOCK_SECONDS = 2.0
"""How long a new owner waits for the lock: whoever looks whether it is held holds it for a moment."""
LOG_BYTES = 1_000_000
MOST_REQUEST_BYTES = 200_000
_log = logging.getLogger(__name__)


class Orders(BaseModel):
    """What an owner is started with. `key` comes by standard input, so that no list of processes shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    url: str | None = None
    key: SecretStr | None = None
    embedder: Choice = "auto"
    idle_seconds: float = 120.0


class Owner:
    """The index with its journal and outbox. One thread takes in, any number search; errors are those of `index`."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self.outbox = Outbox(orders.folder / "outbox")
        self.journal = Journal(orders.folder / "journal.jsonl")
        self._filled = orders.folder / "filled"
        self._alone = threading.Lock()
        self._index = self._opened()
        self._ready = False
        self._stopped = threading.Event()
        self._behind = ""
        self.asked_at = time.monotonic()

    def _opened(self) -> Index:
        from infra.memory.index import Index  # Qdrant's client takes seconds to import

        return Index(open_client(self._orders), open_embedder(self._orders.embedder))

    def close(self) -> None:
        """Let go of the index, so that another owner may open it."""
        self._index.close()

    def begin(self) -> None:
        """Open the index and take in the oldest of what waits. What is in the way is tried again by `work`."""
        self.outbox.sweep()
        try:
            self.take_in()
        except FactoryError as error:
            self._behind = str(error)

    def take_in(self) -> bool:
        """Journal and index some of what waits, then let it go. Returns whether there was anything. Raises InfraError."""
        with self._alone:
            self._prepare()
            waiting = self.outbox.waiting(BATCH)
            if not waiting:
                return False
            entries = [entry for _, entry in waiting]
            self.journal.append(entries)
            self._index.apply(entries)
            for file, _ in waiting:
                file.unlink(missing_ok=True)
            return True

    def _prepare(self) -> None:
        """A collection that is new to us gets what the journal has; one whose filling was cut short, too."""
        if self._ready:
            return
        self._open()
        if not self._filled.exists():
            self._fill()
            write_atomically(self._filled, self._filled_with(), mode=0o600)
        self._ready = True

    def _open(self) -> None:
        """Have a collection. The mark that it is filled goes before anything is made anew, so that a kill leaves none; half a
        collection of ours goes, too, because a point knows only its newest writings and would count older ones again."""
        if not (self._filled.exists() and self._filled.read_bytes() == self._filled_with() and self._index.exists()):
            self._filled.unlink(missing_ok=True)
            if self._orders.url is None:
                self._drop()
        try:
            self._index.ensure()
        except Unreachable as error:
            if self._orders.url is not None:
                raise
            _log.warning("memory outcome=rebuilding reason=%s", error)  # a folder of ours that cannot be opened
            self._drop()
            self._index.ensure()

    def _filled_with(self) -> bytes:
        return f"{self._orders.url or 'here'} {self._index.collection}\n".encode()

    def _drop(self) -> None:
        self._filled.unlink(missing_ok=True)
        self._index.drop()

    def _fill(self) -> None:
        batch = []
        for entry in self.journal.entries():
            batch.append(entry)
            if len(batch) == FILLED_AT_ONCE:
                self._index.apply(batch)
                batch = []
        self._index.apply(batch)

    def rebuild(self) -> int:
        """Make the index anew from the journal; on a shared server, write ours again and leave the rest. Returns its size."""
        with self._alone:
            if self._orders.url is None:
                self._ready = False
                self._drop()
                self._prepare()
            else:
                self._prepare()
                self._fill()
            return self._index.count()

    def search(self, wanted: Wanted) -> Answer:
        """Raises InfraError when the index cannot be asked."""
        now = datetime.now(UTC)
        found = tuple(self._opened_index().search(wanted, now))
        if found:
            self._index.used([each.point.id for each in found], now)
        return Answer(found=found)

    def points(self, asked: Ids) -> Answer:
        """Those that are there, whatever their status."""
        return _answer_of(self._opened_index().get(asked.ids))

    def derived(self, asked: Ids) -> Answer:
        """Summaries that were made of any of them."""
        return _answer_of(self._opened_index().derived(asked.ids))

    def stale(self) -> Answer:
        """Active points that nobody needs any more."""
        return _answer_of(self._opened_index().stale(datetime.now(UTC)))

    def clusters(self, asked: Ids) -> Clusters:
        """What belongs together with these points."""
        return Clusters(found=tuple(self._opened_index().clusters(asked.ids, datetime.now(UTC))))

    def fresh(self, asked: Since) -> Fresh:
        """Points that were written after a place in the journal."""
        ids, upto = self.journal.since(asked.after, asked.limit)
        return Fresh(ids=tuple(ids), upto=upto)

    def _opened_index(self) -> Index:
        if not self._ready:
            raise Unreachable(self._behind or "the memory index is being opened")
        return self._index

    def health(self) -> Health:
        return Health(
            pid=os.getpid(), collection=self._index.collection, points=self._index.count() if self._ready else 0,
            waiting=self.outbox.count(), behind=self._behind,
        )  # fmt: skip

    def work(self) -> None:
        """Take in until nobody has asked for a while and nothing waits, or the home is gone."""
        pause = POLL_SECONDS
        while not self._may_go():
            try:
                pause = 0.0 if self.take_in() else POLL_SECONDS
                self._behind = ""
            except FactoryError as error:  # a full disk, a server that is away: what waits is safe, and waits
                pause = min(max(pause, POLL_SECONDS) * 2, LONGEST_PAUSE_SECONDS)
                if str(error) != self._behind:
                    _log.warning("memory outcome=behind waiting=%d reason=%s", self.outbox.count(), error)
                self._behind = str(error)
            self._stopped.wait(pause)

    def stop(self) -> Health:
        """End soon."""
        self._stopped.set()
        return self.health()

    def _may_go(self) -> bool:
        if self._stopped.is_set():
            return True
        idle = time.monotonic() - self.asked_at > self._orders.idle_seconds
        return not self._orders.folder.is_dir() or (idle and (self._behind != "" or self.outbox.count() == 0))


def open_client(orders: Orders) -> QdrantClient:
    """Qdrant's client for the server of the orders, or for the engine in this process."""
    from qdrant_client import QdrantClient

    if orders.url is not None:
        key = orders.key.get_secret_value() if orders.key else None
        return QdrantClient(url=orders.url, api_key=key, timeout=int(REQUEST_SECONDS), check_compatibility=False)
    from infra.memory.edge import EmbeddedTransport

    transport = EmbeddedTransport(orders.folder / "index")
    return QdrantClient(url="http://embedded", transport=transport, check_compatibility=False)


def _answer_of(points: Sequence[Point]) -> Answer:
    return Answer(found=tuple(Recalled(point=point, score=1.0) for point in points))


_ASKED: Mapping[str, tuple[type[BaseModel], Callable[[Owner, Any], Any]]] = {
    "/search": (Wanted, Owner.search),
    "/points": (Ids, Owner.points),
    "/derived": (Ids, Owner.derived),
    "/clusters": (Ids, Owner.clusters),
    "/fresh": (Since, Owner.fresh),
}
"""Questions by their path: what they are asked with, and who answers."""
_TOLD: Mapping[str, Callable[[Owner], Any]] = {
    "/stale": Owner.stale,
    "/rebuild": lambda owner: {"points": owner.rebuild()},
    "/stop": Owner.stop,
}


class _Requests(BaseHTTPRequestHandler):
    """`GET /health`, and `POST` of `_ASKED` and `_TOLD`; answers are the models' JSON."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer(self.server.owner.health)

    def do_POST(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(min(int(self.headers.get("content-length") or 0), MOST_REQUEST_BYTES))
        if told := _TOLD.get(self.path):
            self._answer(lambda: told(owner))
            return
        asked, answered = _ASKED.get(self.path, _ASKED["/search"])
        self._answer(lambda: answered(owner, asked.model_validate_json(body)))

    def _answer(self, asked: Any) -> None:
        self.server.owner.asked_at = time.monotonic()
        try:
            said = asked()
            status, text = 200, said.model_dump_json() if isinstance(said, BaseModel) else json.dumps(said)
        except ValidationError as error:
            status, text = 400, json.dumps({"error": f"not a question of memory: {error.error_count()} mistake(s)"})
        except InfraError as error:
            status, text = 503, json.dumps({"error": str(error)})
        data = text.encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed, or waits no longer
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, owner: Owner) -> None:
        self.owner = owner
        super().__init__(path, _Requests)


@contextmanager
def reachable(folder: Path) -> Iterator[str]:
    """A path for the socket of `folder` that fits into a socket's address (about 100 bytes), while inside."""
    path = folder / "socket"
    if len(os.fsencode(path)) < 100 or sys.platform != "linux":
        yield str(path)
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/socket"
    finally:
        os.close(handle)


def serve(orders: Orders) -> None:
    """Be the owner until nobody needs one. Raises CapacityUnavailable when there is one."""
    with _only_owner(orders.folder):
        owner = Owner(orders)
        owner.begin()
        (orders.folder / "socket").unlink(missing_ok=True)
        with reachable(orders.folder) as path, _Server(path, owner) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                owner.work()
            finally:
                (orders.folder / "socket").unlink(missing_ok=True)
                server.shutdown()
                owner.close()


@contextmanager
def _only_owner(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with sole(folder / "owner", "the memory index"):
                yield
                return
        except CapacityUnavailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Read the orders, leave the caller, and serve."""
    orders = Orders.model_validate_json(sys.stdin.read())
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    private_folder(orders.folder)
    _into_log(orders.folder / "owner.log")
    logs.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(CapacityUnavailable):
        serve(orders)


def _into_log(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        shutil.move(path, path.with_suffix(".log.1"))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in ((0, nothing), (1, log), (2, log)):
        os.dup2(handle, number)


if __name__ == "__main__":
    main()
