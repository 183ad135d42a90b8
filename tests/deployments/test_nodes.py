"""Nodes for real: `darkfactory up`, `node join`, drain and leave as processes, and what they do when others are away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import psutil
import pytest

from deployments import nodes
from deployments.definitions import control_table
from deployments.engine import free_port, read_record
from infra.boards import Ticket
from infra.claims import Claim, Claims
from infra.database import Database
from infra.errors import ConfigError, Unreachable
from infra.fleet import Fleet, Node
from infra.postgres import database_urls, ensure_postgres, stop_postgres
from infra.reloading import Loaded
from infra.sections import DispatchSection, WebhooksSection
from infra.settings import Settings
from infra.slots import sole

ROOT = Path(__file__).parents[2]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


class Home:
    """A home with the command line as processes, and the ledger as it is seen from outside."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.settings = folder, Settings(home=folder, database_url=database_url)
        self.database = Database(database_url.replace("postgresql://", "postgresql+psycopg://"))
        self.fleet, self.claims = Fleet(self.database), Claims(self.database)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(folder), "DARKFACTORY_HOME": str(folder), "DARKFACTORY_DATABASE_URL": database_url}
        self.environment = {
            **kept,
            **own,
            "PYTHONPATH": str(ROOT),
            "DARKFACTORY_WEBHOOKS": f'{{"port": {free_port()}}}',
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "deployments", *arguments]

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and stderr of a command."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=90, check=False
        )  # fmt: skip
        return done.returncode, done.stderr

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that goes on; it gets Ctrl-C at the end unless it ended before."""
        with (self.folder / "command.log").open("ab") as log:
            process = subprocess.Popen(self.command(*arguments), env=self.environment, cwd=self.folder, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(90)

    def log(self) -> str:
        return (self.folder / "command.log").read_text()

    def node(self, name: str) -> Node:
        return next(node for node in self.fleet.nodes() if node.name == name)

    def is_there(self, name: str) -> bool:
        """Whether it takes work: while it gets ready, it has no slots."""
        return any(n.name == name and n.alive and n.state == "active" and n.slots for n in self.fleet.nodes())

    def claim(self, key: str, node: str, flow_run: str | None = None) -> Claim:
        """A ticket in the hands of a node; with `flow_run` its run has begun."""
        ticket = Ticket(board="folder", key=key, title=key, body="", state="todo")
        claim = self.claims.claim(
            ticket, read_at=self.claims.now(), holder="test", machine="test", repository="shop", lease_seconds=600,
            choose_node=lambda _: node,
        )  # fmt: skip
        assert claim
        if flow_run is None:
            return claim
        return self.claims.start("folder", key, claim.token, flow_run=flow_run, machine="test")

    def state_of(self, key: str) -> str:
        claim = self.claims.find("folder", key)
        assert claim
        return claim.state


@pytest.fixture
def home(tmp_path: Path, database_url: str) -> Iterator[Home]:
    made = Home(tmp_path, database_url)
    with made.database:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "HEARTBEAT_SECONDS", 0.05)


# --- up


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_up_runs_server_dispatcher_gateway_and_a_node_and_leaves_nothing_behind(home: Home) -> None:
    """And a second `up` of the same home is refused."""
    home.environment["DARKFACTORY_DISPATCH"] = '{"every_seconds": 10}'
    with home.started("up", "--port", str(free_port())) as up:
        name = home.settings.node_name
        assert wait_until(lambda: home.is_there(name) or up.poll() is not None, 200)
        assert up.poll() is None, home.log()
        assert wait_until(lambda: len(children := read_record(home.folder).children) == 4 and children, 30)  # type: ignore[union-attr]
        record = read_record(home.folder)
        assert record
        with httpx.Client(base_url=record.api_url, timeout=30) as api:
            assert api.get("/work_pools/control").json()["concurrency_limit"] == 4
            assert api.get(f"/work_pools/node-{name}").json()["concurrency_limit"] == home.settings.model_slots + 1
            names = {deployment["name"] for deployment in api.post("/deployments/filter", json={}).json()}
            assert names == {each.name for each in control_table(home.settings)} | {name}
            automations = {each["name"] for each in api.post("/automations/filter", json={}).json()}
            assert automations == {"dispatch on webhook", "steward on webhook", "refine on dispatch"}
            tell(api, "pull-request", "touched", {"repository": "", "branch": "", "number": "7"})
            wish = {
                "repository": "shop",
                "branch": "",
                "number": "7",
                "instructions": 'Say "x". {{ y }}',
                "asked_by": "d-1",
            }
            tell(api, "refinement", "asked", wish)
            wanted = {"clean-node", "dispatch-tickets", "steward"}
            assert wait_until(lambda: wanted <= completed(api), 120), home.log()
            assert wait_until(lambda: wish in parameters_of_runs(api), 60), home.log()
        assert httpx.get(record.ui_url, timeout=20, follow_redirects=True).status_code == 200
        os.kill(record.children[-1].pid, signal.SIGKILL)  # the gateway: all else goes on (OB4)
        code, said = home.run("up")
        assert (code, "already up at" in said) == (2, True)
        assert "no webhooks for now" in home.log()
        up.send_signal(signal.SIGTERM)
        assert up.wait(90) == 0
    assert not [child for child in record.children if child.alive]
    assert read_record(home.folder) is None
    assert home.node(name).state == "left"


def tell(api: httpx.Client, subject: str, happened: str, payload: dict[str, str]) -> None:
    """An event as the gateway sends it."""
    event = {
        "id": str(uuid4()),
        "event": f"darkfactory.{subject}.{happened}",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"darkfactory.{subject}.shop.7"},
        "payload": payload,
    }
    api.post("/events", json=[event]).raise_for_status()


def parameters_of_runs(api: httpx.Client) -> list[dict[str, object]]:
    return [run["parameters"] for run in api.post("/flow_runs/filter", json={"limit": 100}).json()]


def completed(api: httpx.Client) -> set[str]:
    """The flows of which a run got to its end."""
    runs = api.post("/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}).json()
    flows = api.post("/flows/filter", json={"flows": {"id": {"any_": [run["flow_id"] for run in runs]}}}).json()
    return {flow["name"] for flow in flows}


def idle(seconds: float, *arguments: str) -> subprocess.Popen[bytes]:
    """A child that ends well after a while, started with the arguments that `up` gives."""
    code = f"import time; time.sleep({seconds})"
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def test_a_gateway_that_ends_is_started_again_and_a_node_may_leave_while_all_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OB4: a port that is taken, or a bug in a page, stops no ticket. I10: who drains the node of `up` keeps the rest."""
    monkeypatch.setattr(nodes, "GATEWAY_AGAIN_SECONDS", 0.1)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))  # whose factory.yaml is followed
    gateway, said = idle(60, *nodes.GATEWAY), list[str]()
    monkeypatch.setattr(nodes, "_start", lambda *_: gateway)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway.log").write_text("error: the port is taken\n")
    server = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "server"], stdin=subprocess.PIPE)
    children = [server, idle(0, "deployments", "node", "join"), idle(0, *nodes.GATEWAY)]
    watching = Thread(target=nodes._watch, args=(children, Settings(home=tmp_path), "http://x/api", said.append))
    watching.start()
    try:
        assert wait_until(lambda: _recorded(tmp_path) == [server.pid, gateway.pid], 20)
        assert children == [server, gateway]
        assert watching.is_alive()
        gone, left = sorted(said)
        assert ("boards are still read" in gone, gone.endswith("error: the port is taken")) == (True, True)
        assert "has left, all else goes on" in left
        server.communicate()
        watching.join(10)
        assert isinstance(watching.error, Unreachable)
    finally:
        for child in (gateway, server):
            child.kill()
            child.wait()


def test_a_signal_is_heard_whatever_asynchronous_work_goes_on_at_that_moment() -> None:
    """An exception of a callback is what asyncio logs and forgets: Ctrl-C would do nothing."""

    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.sleep(5)

    with pytest.raises(nodes.Stopped), nodes.stopping_on_signals():
        asyncio.run(work())


def test_a_second_signal_does_not_cut_off_the_ending_of_what_was_started() -> None:
    """Ctrl-C twice, or `darkfactory down` right after it: children would stay, and their record."""
    ended, before = list[str](), signal.getsignal(signal.SIGINT)

    def supervise() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            ended.append("all")

    with pytest.raises(nodes.Stopped), nodes.stopping_on_signals():
        supervise()
    assert ended == ["all"]
    assert signal.getsignal(signal.SIGINT) is before


def _recorded(home: Path) -> list[int]:
    record = read_record(home)
    return [child.pid for child in record.children] if record else []


class Thread(threading.Thread):
    """Keeps what ended it."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except Unreachable as error:
            self.error = error


# --- join, drain, leave


@pytest.mark.faults
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_node_buries_what_its_killed_self_left_comes_back_with_other_slots_and_drains(
    home: Home, prefect_url: str, node_name: str
) -> None:
    """I10, RC8: what Prefect still called running is over, its ticket goes out again at once; a drain ends with the last
    ticket. Nobody outside can connect to a node."""
    join = ("node", "join", "--name", node_name, "--api", f"{prefect_url}/")
    with httpx.Client(base_url=prefect_url, timeout=30) as api:
        with home.started(*join, "--slots", "1") as first:
            assert wait_until(lambda: home.is_there(node_name) or first.poll() is not None, 90), home.log()
            assert wait_until(lambda: runs(api, node_name, "COMPLETED"), 60), home.log()
            assert set(listening(first.pid)) <= {"127.0.0.1", "::1"}
            os.kill(first.pid, signal.SIGKILL)
        left = running_run(api, node_name)
        home.claim("t-1", node_name, left)
        with home.started(*join, "--slots", "3", "--labels", "GPU, xcode") as second:
            assert wait_until(lambda: home.node(node_name).slots == 3 or second.poll() is not None, 90), home.log()
            assert (state(api, left), home.state_of("t-1")) == ("CRASHED", "retry-queued"), home.log()
            assert home.node(node_name).labels == ("gpu", "xcode")
            assert api.get(f"/work_pools/node-{node_name}").json()["concurrency_limit"] == 4
            claim = home.claim("t-2", node_name, "somebody's")
            assert home.run("node", "drain", node_name)[0] == 0
            time.sleep(2 * nodes.HEARTBEAT_SECONDS)
            assert (second.poll(), home.node(node_name).state) == (None, "draining")
            home.claims.release(claim, "done", moved=True)
            assert wait_until(lambda: second.poll() is not None, 60)
            assert (second.returncode, home.node(node_name).state) == (0, "left"), home.log()


def listening(pid: int) -> list[str]:
    """The addresses that a process and all below it listen at."""
    process = psutil.Process(pid)
    tree = [process, *process.children(recursive=True)]
    return [each.laddr.ip for one in tree for each in one.net_connections("inet") if each.status == "LISTEN"]


@pytest.fixture
def node_name() -> str:
    """One per test: the Prefect server is shared."""
    return f"n-{uuid4().hex[:8]}"


def runs(api: httpx.Client, node: str, *states: str) -> list[dict[str, Any]]:
    asked = {"work_pools": {"name": {"any_": [f"node-{node}"]}}, "flow_runs": {"state": {"type": {"any_": states}}}}
    return list(api.post("/flow_runs/filter", json=asked).json())


def running_run(api: httpx.Client, node: str) -> str:
    """A run of the node that Prefect calls running, and that no process works on."""
    deployment = api.get(f"/deployments/name/work-ticket/{node}").json()["id"]
    given = {"parameters": {"ticket": "t-1", "repository": "shop", "board": "folder", "token": 1}}
    run = str(api.post(f"/deployments/{deployment}/create_flow_run", json=given).json()["id"])
    api.post(f"/flow_runs/{run}/set_state", json={"state": {"type": "RUNNING"}, "force": True})
    assert state(api, run) == "RUNNING"
    return run


def state(api: httpx.Client, run: str) -> str:
    return str(api.get(f"/flow_runs/{run}").json()["state_type"])


@pytest.mark.integration
def test_a_name_that_lives_on_this_or_another_machine_is_refused(home: Home, prefect_url: str) -> None:
    """And whoever is refused leaves the other one alone."""
    home.fleet.join("mini", slots=1, labels=(), machine="elsewhere", provider="p", lease_seconds=60)
    code, said = home.run("node", "join", "--name", "mini", "--api", prefect_url)
    assert (code, "alive on another machine" in said) == (2, True), said
    with sole(home.folder / "run" / "nodes" / "mega", "node"):
        code, said = home.run("node", "join", "--name", "mega", "--api", prefect_url)
    assert (code, "runs on this machine already" in said) == (2, True), said
    assert [(node.name, node.state) for node in home.fleet.nodes()] == [("mini", "active")]


@pytest.mark.parametrize("api", ["http://127.0.0.1:9/api", "127.0.0.1:9/api", "not an address", "http://[::1/api"])
def test_an_address_where_no_prefect_server_answers_is_named(tmp_path: Path, api: str) -> None:
    with pytest.raises(Unreachable, match="correct --api"):
        nodes.join(Settings(home=tmp_path), "mini", 1, (), api, print)


class Answers(BaseHTTPRequestHandler):
    """200 and `health` for the health check, 401 for all else."""

    health = b"true"

    def do_POST(self) -> None:
        is_asked = self.path in ("/api/health", "/behind/a/proxy/api/health")
        said = self.health if is_asked else b"{}"
        self.send_response(200 if is_asked else 401)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST  # noqa: N815  as its base names it

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(health: bytes = b"true") -> Iterator[str]:
    handler = type("Handler", (Answers,), {"health": health})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


def test_something_else_that_answers_there_is_not_taken_for_prefect(tmp_path: Path) -> None:
    with answering(b"<html>") as url, pytest.raises(Unreachable, match="correct --api"):
        nodes.join(Settings(home=tmp_path), "mini", 1, (), url, print)


def test_a_node_without_the_factorys_database_is_refused(tmp_path: Path) -> None:
    """I10: it would start an empty database of its own, and wait there for work that never comes."""
    with answering() as url:
        pages = url.removesuffix("/api")
        for address in (url, f"{url}/", pages, f"{pages}/behind/a/proxy/", f"{pages}/behind/a/proxy/api"):
            with pytest.raises(ConfigError, match="DARKFACTORY_DATABASE_URL"):
                nodes.join(Settings(home=tmp_path), "mini", 1, (), address, print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_a_prefect_server_with_a_password_is_named_with_what_to_set(home: Home) -> None:
    with answering() as url:
        code, said = home.run("node", "join", "--name", "mini", "--api", url)
    assert (code, said.count("\n"), "PREFECT_API_AUTH_STRING" in said) == (3, 1, True), said
    assert home.node("mini").state == "left"


@pytest.mark.parametrize("name", ["", "a/b", "-x", "x" * 64, "a b"])
def test_a_name_that_cannot_name_a_pool_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not usable as a node's name"):
        nodes.join(Settings(home=tmp_path), name, 1, (), "http://127.0.0.1:9/api", print)


def test_a_node_that_lost_its_name_to_another_machine_ends_and_leaves_that_one_alone(home: Home, quick: None) -> None:
    home.fleet.join("mini", slots=1, labels=(), machine="elsewhere", provider="p", lease_seconds=60)
    with pytest.raises(ConfigError, match="another machine joined"):
        nodes._live(home.fleet, home.claims, home.settings, "mini", ALIVE, print)
    nodes._tell(home.fleet, home.settings, "mini", "left")
    assert home.node("mini").state == "active"


def test_leaving_waits_for_what_runs_and_gives_back_what_has_not_begun(home: Home, quick: None) -> None:
    """I10: a node that left holds nothing."""
    home.fleet.join("mini", slots=2, labels=(), machine="m", provider="p", lease_seconds=600)
    running, _ = home.claim("t-1", "mini", "run"), home.claim("t-2", "mini")
    leaving = threading.Thread(target=nodes.leave, args=(home.settings, "mini", print))
    leaving.start()
    assert wait_until(lambda: home.node("mini").state == "draining", 10)
    leaving.join(0.3)
    assert (leaving.is_alive(), home.node("mini").state) == (True, "draining")
    home.claims.release(running, "done", moved=True)
    leaving.join(20)
    assert not leaving.is_alive()
    assert (home.state_of("t-1"), home.state_of("t-2"), home.node("mini").state) == ("released", "retry-queued", "left")


def test_of_machines_that_join_as_one_new_name_at_once_one_gets_it(home: Home) -> None:
    """I10: two workers of one pool would end each other's runs."""

    def join(machine: str) -> bool:
        with suppress(ConfigError):
            return bool(home.fleet.join("mini", slots=1, labels=(), machine=machine, provider="p", lease_seconds=60))
        return False

    with ThreadPoolExecutor(2) as pool:
        for number in range(10):
            assert sum(pool.map(join, ("a", "b"))) == 1, number
            home.fleet.set_state("mini", "left")


def test_what_left_has_left_until_it_joins_again(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.fleet.join("mini", slots=2, labels=(), machine="m", provider="p", lease_seconds=600)
    for _ in range(2):
        nodes.leave(home.settings, "mini", print)
        assert (nodes.drain(home.settings, "mini"), home.node("mini").alive) == ("left", False)
    home.fleet.join("mini", slots=2, labels=(), machine="other", provider="p", lease_seconds=600)
    assert nodes.drain(home.settings, "mini") == "draining"


def test_leaving_does_not_wait_for_a_node_that_is_gone(home: Home, quick: None) -> None:
    home.fleet.join("mini", slots=2, labels=(), machine="m", provider="p", lease_seconds=-1)
    home.claim("t-1", "mini", "run")
    nodes.leave(home.settings, "mini", print)
    assert (home.state_of("t-1"), home.node("mini").state) == ("retry-queued", "left")


def test_an_unknown_node_is_answered_with_the_known_ones(home: Home) -> None:
    home.fleet.join("mini", slots=1, labels=(), machine="m", provider="p", lease_seconds=60)
    for act in (lambda: nodes.drain(home.settings, "mni"), lambda: nodes.leave(home.settings, "mni", print)):
        with pytest.raises(ConfigError, match="known: mini"):
            act()


# --- when others are away


class _Alive(NamedTuple):
    """In place of a worker, of which the heartbeat asks nothing else."""

    alive: bool = True


ALIVE: Any = _Alive()


@pytest.mark.integration
def test_a_heartbeat_survives_a_database_that_is_away(tmp_path_factory: pytest.TempPathFactory, quick: None) -> None:
    folder = Path(tmp_path_factory.mktemp("away"))
    with own_postgres() as base:
        url = database_urls(ensure_postgres(base)).ledger
        with Database(url) as database:
            database.migrate()
            fleet, claims = Fleet(database), Claims(database)
            settings = Settings(home=folder)
            fleet.join("mini", slots=1, labels=(), machine=settings.machine, provider="p", lease_seconds=60)
            living = threading.Thread(target=nodes._live, args=(fleet, claims, settings, "mini", ALIVE, print))
            living.start()
            stop_postgres(base)
            with pytest.raises(Unreachable):
                fleet.nodes()
            nodes._requeue_dead(claims, "a run that ended meanwhile")
            time.sleep(0.5)
            ensure_postgres(base)
            before = fleet.nodes()[0].lease_until
            assert wait_until(lambda: fleet.nodes()[0].lease_until > before, 20)
            fleet.set_state("mini", "left")
            living.join(20)
            assert not living.is_alive()


@contextmanager
def own_postgres() -> Iterator[Path]:
    """A home for a server that may be stopped. Not below pytest's folder: its account has to pass through."""
    import shutil
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="darkfactory-tests-"))
    try:
        yield base
    finally:
        stop_postgres(base)
        shutil.rmtree(base)


class Door:
    """A port in front of the Prefect server that can be closed: then nothing answers, as when it is started anew."""

    def __init__(self, server: str) -> None:
        self._target = httpx.URL(server)
        self.port, self._open, self._ended = free_port(), threading.Event(), threading.Event()
        self._wires: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.open()
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.settimeout(0.1)
        self._open.set()

    def close(self) -> None:
        self._open.clear()
        self._listener.close()
        for wire in self._wires:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()
        self._wires.clear()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not self._open.wait(0.1):
                continue
            with suppress(OSError):
                inside, _ = self._listener.accept()
                outside = socket.create_connection((self._target.host, self._target.port or 80))
                self._wires += [inside, outside]
                for one, other in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def door(prefect_url: str) -> Iterator[Door]:
    made = Door(prefect_url)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.faults
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_worker_waits_for_a_prefect_server_that_is_away_and_goes_on(
    home: Home, door: Door, prefect_url: str, node_name: str
) -> None:
    """A server that is away for an hour does not cost a factory its nodes. Without retries an hour is half a minute."""
    home.environment["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    with (
        httpx.Client(base_url=prefect_url, timeout=30) as api,
        home.started("node", "join", "--name", node_name, "--slots", "1", "--api", door.url) as node,
    ):
        assert wait_until(lambda: runs(api, node_name, "COMPLETED") or node.poll() is not None, 120), home.log()
        door.close()
        assert wait_until(lambda: "server-away" in home.log() or node.poll() is not None, 120), home.log()
        assert node.poll() is None, home.log()
        door.open()
        before = len(runs(api, node_name, "COMPLETED"))
        deployment = api.get(f"/deployments/name/clean-node/{node_name}").json()["id"]
        api.post(f"/deployments/{deployment}/create_flow_run", json={})
        assert wait_until(lambda: len(runs(api, node_name, "COMPLETED")) > before, 90), home.log()


# --- which node a ticket goes to


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str | None, str | None]]]:
    """Where a ticket of a repository goes, and why nowhere, with these nodes and pauses."""
    from tasks import services
    from tasks.dispatching import Slots, Waiting

    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", '{"app": {"path": "/app", "node_labels": ["MacOS"]}, "shop": {"path": "/shop"}}')  # fmt: skip
    services.close()

    def choice(repository: str, there: Sequence[Node], paused: Sequence[str] = ()) -> tuple[str | None, str | None]:
        slots = Slots((), there, paused)
        waiting = Waiting(
            ticket=Ticket(board="folder", key="t-1", title="t", body="", state="todo"), repository=repository
        )
        return slots.node_for(waiting, ()), slots.why_not(waiting)

    yield choice
    services.close()


def a_node(name: str, *labels: str, slots: int = 1, provider: str = "openai", alive: bool = True) -> Node:
    now = datetime.now(UTC)
    return Node(name=name, slots=slots, labels=labels, state="active", machine="m", provider=provider, alive=alive,
                lease_until=now + timedelta(minutes=1), joined_at=now)  # fmt: skip


def test_a_node_whose_provider_is_paused_gets_nothing_and_others_do(choose: Any) -> None:
    """RB8: while one provider backs off, its work goes to nodes with another one."""
    there = [a_node("big", slots=9, provider="openai"), a_node("small", provider="embedded@small")]
    assert choose("shop", there) == ("big", None)
    assert choose("shop", there, ["provider:openai"]) == ("small", None)
    assert choose("shop", there, ["node:small", "provider:openai"])[0] is None
    assert "provider:openai" in choose("shop", there, ["node:small", "provider:openai"])[1]


def test_a_repository_waits_for_a_node_with_its_labels_and_the_reason_says_so(choose: Any) -> None:
    """I10: whatever the labels' case, and however many other slots are free."""
    linux, mac = a_node("linux", "gpu", slots=9), a_node("mac", "macos", "xcode")
    assert choose("app", [linux, mac]) == ("mac", None)
    node, reason = choose("app", [linux])
    assert (node, "MacOS" in reason) == (None, True), reason
    assert choose("app", [linux, a_node("mac", "macos", alive=False)])[0] is None
    assert choose("shop", [a_node("full", slots=0)]) == (None, "no slots")


# --- what machines share


def test_pull_requests_of_a_remote_folder_are_beside_it_so_that_machines_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.pull_requests.folder import FolderForge
    from tasks import services

    (tmp_path / "git" / "app.v1.git").mkdir(parents=True)
    remote = {"app": {"path": "/app", "remote": str(tmp_path / "git" / "app.v1.git")}, "shop": {"path": "/shop"}}
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(remote))
    services.close()
    shared, own = services.forge("app"), services.forge("shop")
    services.close()
    assert isinstance(shared, FolderForge)
    assert isinstance(own, FolderForge)
    assert shared.folder == tmp_path / "git" / "app.v1.pulls"
    assert own.folder == tmp_path / "home" / "forge" / "shop" / "pulls"


def test_an_edit_of_factory_yaml_sets_the_schedules_anew_and_starts_the_gateway_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CF1, I15: and a bad edit is said on the terminal of `up`."""
    every, said = list[float](), list[str]()

    async def set_up(settings: Settings) -> None:
        every.append(settings.dispatch.every_seconds)

    monkeypatch.setattr(nodes, "_set_up_control", set_up)
    was = Settings()
    assert not nodes._follow(was, Loaded(Settings(seed=5)), said.append)
    assert every == []
    assert not nodes._follow(was, Loaded(Settings(dispatch=DispatchSection(every_seconds=30))), said.append)
    assert every == [30]
    assert nodes._follow(was, Loaded(Settings(webhooks=WebhooksSection(port=4281))), said.append)
    assert not nodes._follow(was, Loaded(was, "line 3: sed"), said.append)
    assert (every, said[-1]) == ([30], "line 3: sed; nothing new is launched")
    short = Settings(dispatch=DispatchSection(every_seconds=40))  # good only until the next edit, but good
    assert not nodes._follow(was, Loaded(short, "line 3: sed"), said.append)
    assert every == [30, 40]


def test_a_gateway_may_end_whose_log_cannot_be_read(tmp_path: Path) -> None:
    """OB4: nor could it be written, which stopped nobody."""
    (tmp_path / "logs" / "gateway.log").mkdir(parents=True)
    child = idle(0, *nodes.GATEWAY)
    child.wait()
    assert "boards are still read" in nodes._bearable(child, Settings(home=tmp_path))
