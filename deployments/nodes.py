"""Machines: `up` runs Prefect's server, the factory's own flows, the webhook receiver and this machine as a node; `join`
makes a machine a node of a factory that is up elsewhere. Both stay in the foreground and end all they started.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import httpx

from deployments.definitions import (
    CONTROL,
    CONTROL_SLOTS,
    apply_all,
    control_table,
    ensure_pool,
    ensure_triggers,
    node_table,
)
from deployments.engine import (
    HOST,
    STOP_SECONDS,
    Child,
    ServerRecord,
    end_group,
    engine_environment,
    free_port,
    is_healthy,
    log_hint,
    read_record,
    record_path,
    start_child,
    start_server,
    wait_for_server,
    write_record,
)
from deployments.repair import following
from infra.claims import Claims
from infra.database import Database, open_database
from infra.errors import AuthFailed, CapacityUnavailable, ConfigError, FactoryError, Unreachable
from infra.fleet import Fleet, Node, NodeState, pool_name
from infra.llm.local import process_started
from infra.memory.client import Memory, served
from infra.reloading import Edits, Loaded
from infra.settings import NODE_NAME, Settings
from infra.slots import sole

if TYPE_CHECKING:
    from deployments.worker import Worker

NODE_LEASE_SECONDS = 45.0
HEARTBEAT_SECONDS = 10.0
LEAVE_SECONDS = 600.0
"""How long a node that leaves waits for its runs to end before it stops them; their tickets go to other nodes."""

GATEWAY = ["deployments.gateway"]
GATEWAY_AGAIN_SECONDS = 30.0

Say = Callable[[str], None]


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT arrived. As an Exception, whatever runs at that moment could swallow it; asyncio's callbacks do."""


def up(settings: Settings, port: int, say: Say) -> None:
    """Run everything until SIGINT or SIGTERM, then end it. Raises Unreachable when a part of it dies.

    Raises ConfigError when another `up` of this home runs. A taken port is replaced by a free one.
    """
    record = read_record(settings.root)
    if record and record.up.alive:
        raise ConfigError(f"already up at {record.ui_url} (process {record.up.pid}); `darkfactory down` ends it")
    down(settings, say)
    with stopping_on_signals(), suppress(Stopped):
        _supervise(settings, free_port(port), say)
    say("stopped")


def _supervise(settings: Settings, port: int, say: Say) -> None:
    children: list[subprocess.Popen[bytes]] = []
    api_url = f"http://{HOST}:{port}/api"
    try:
        say("starting Prefect's server")
        log = settings.root / "logs" / "prefect-server.log"
        children.append(start_server(settings, port, log, []))
        _record(settings, api_url, children)
        wait_for_server(api_url, children[0], log)
        os.environ.update(engine_environment(settings), PREFECT_API_URL=api_url)
        asyncio.run(_set_up_control(settings))
        slots = settings.model_slots
        for arguments in (
            ["deployments.worker", "--pool", CONTROL, "--slots", str(CONTROL_SLOTS)],
            ["deployments", "node", "join", "--name", settings.node_name, "--slots", str(slots), "--api", api_url],
            GATEWAY,
        ):
            children.append(_start(settings, arguments))
            _record(settings, api_url, children)
        say(f"Prefect's pages: {api_url.removesuffix('/api')}")
        say(f"webhooks: http://{settings.webhooks.host}:{settings.webhooks.port}/webhooks/github (linear, jira)")
        say(f"node {settings.node_name!r} with {slots} slot(s); boards: {', '.join(sorted(settings.all_boards))}")
        say(f"boards are read every {settings.dispatch.every_seconds:.0f} s; Ctrl-C ends all")
        _watch(children, settings, api_url, say)
    finally:
        say("ending; what runs is stopped, and goes on with the next `darkfactory up`")
        for child in reversed(children):
            end_group(child)
        record_path(settings.root).unlink(missing_ok=True)


def _start(settings: Settings, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **engine_environment(settings, verbose=True)}  # its output is a log file
    command = [sys.executable, "-P", "-m", *arguments]
    return start_child(command, environment, empty_folder(settings), _log_of(settings, arguments))


def _log_of(settings: Settings, arguments: list[str]) -> Path:
    name = "node" if "join" in arguments else arguments[0].rpartition(".")[2]
    return settings.root / "logs" / f"{name}.log"


def _record(settings: Settings, api_url: str, children: list[subprocess.Popen[bytes]]) -> None:
    record = ServerRecord(
        up=_identity(os.getpid()), children=tuple(_identity(c.pid) for c in children), api_url=api_url
    )
    write_record(settings.root, record)


def _identity(pid: int) -> Child:
    return Child(pid=pid, started=process_started(pid) or "")


def empty_folder(settings: Settings) -> Path:
    """The folder runs start in: Prefect copies it, and nothing in it can be imported by accident."""
    folder = settings.root / "prefect" / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _set_up_control(settings: Settings) -> None:
    """The factory's own pool, flows, schedules and automations; all of it may be there already."""
    from prefect.client.orchestration import get_client

    with _translated("the factory's own flows"):
        async with get_client() as client:
            await ensure_pool(client, CONTROL, CONTROL_SLOTS)
            await apply_all(client, CONTROL, control_table(settings), str(empty_folder(settings)))
            await ensure_triggers(client)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AuthFailed(
                "Prefect's server lets nobody in without its password; set PREFECT_API_AUTH_STRING to what the server has as "
                "PREFECT_SERVER_API_AUTH_STRING, or PREFECT_API_KEY"
            ) from None
        raise Unreachable(f"Prefect's server does not take {what}: {error!r}; run the command again") from error
    except httpx.HTTPError as error:
        raise Unreachable(f"Prefect's server does not take {what}: {error!r}; run the command again") from error


def join(settings: Settings, name: str, slots: int, labels: Sequence[str], api_url: str, say: Say) -> None:
    """Be a node until SIGINT, SIGTERM, or until it left. Only outbound connections are made: to Prefect and the database.

    Raises ConfigError (name taken, no database named), AuthFailed, Unreachable.
    """
    if not re.fullmatch(NODE_NAME, name):
        raise ConfigError(f"{name!r} is not usable as a node's name; use letters, digits and . _ - (at most 63)")
    given = api_url.rstrip("/")
    # the address of the pages is what people have at hand
    found = next((url for url in (given, f"{given}/api") if is_healthy(url)), None)
    if found is None:
        raise Unreachable(f"no Prefect server answers at {api_url!r}; start `darkfactory up` there, or correct --api")
    if settings.database_url is None and not _is_up(settings):  # it would start an empty one, and wait in vain
        raise ConfigError(
            "a node takes its work from the database of its factory; set database_url to the one that `darkfactory up` uses "
            "(DARKFACTORY_DATABASE_URL), as docs/nodes.md says"
        )
    os.environ.update(engine_environment(settings, verbose=True), PREFECT_API_URL=found, DARKFACTORY_NODE=name)
    settings = settings.model_copy(update={"node": name})
    settings.__dict__.pop("node_name", None)
    with stopping_on_signals(), suppress(Stopped), _only_one(settings, name), open_database(settings) as database:
        _be_a_node(settings, database, name, slots, labels, say)
    say(f"node {name!r} ended")


def _is_up(settings: Settings) -> bool:
    record = read_record(settings.root)
    return record is not None and record.up.alive


@contextmanager
def _only_one(settings: Settings, name: str) -> Iterator[None]:
    """Be the only process of this home that is this node: two would work off one pool, and bury each other's runs."""
    with ExitStack() as lock:
        try:
            lock.enter_context(sole(settings.root / "run" / "nodes" / name, f"node {name!r}"))
        except CapacityUnavailable:
            raise ConfigError(
                f"node {name!r} runs on this machine already; end it to change slots or labels, or choose another --name"
            ) from None
        yield


def _be_a_node(settings: Settings, database: Database, name: str, slots: int, labels: Sequence[str], say: Say) -> None:
    from deployments.worker import Worker  # imports Prefect, which reads its settings then

    fleet, claims = Fleet(database), Claims(database)
    _join_fleet(fleet, settings, name, 0, labels)  # the name is ours, and nothing is given to it yet
    try:
        asyncio.run(_set_up_node(settings, name, slots))
        with Worker(settings, pool_name(name), slots + 1, on_ended=lambda run: _requeue_dead(claims, run)) as worker:
            try:
                if not worker.wait():
                    raise _ended(settings, name)
                _join_fleet(fleet, settings, name, slots, labels)
                say(f"node {name!r} joined with {slots} slot(s), labels: {', '.join(labels) or 'none'}")
                with served(settings) as memory, following(settings, database, name):
                    _live(fleet, claims, settings, name, worker, say, memory)
            finally:
                _tell(fleet, settings, name, "draining")  # nothing new is given to it while its runs end
    finally:
        _tell(fleet, settings, name, "left")


def _join_fleet(fleet: Fleet, settings: Settings, name: str, slots: int, labels: Sequence[str]) -> None:
    fleet.join(
        name, slots=slots, labels=labels, machine=settings.machine, provider=settings.providers_of("usual"),
        lease_seconds=NODE_LEASE_SECONDS,
    )  # fmt: skip


def _tell(fleet: Fleet, settings: Settings, name: str, state: NodeState) -> None:
    """Change our own state; when another machine has the name by now, or the database is away, it is not ours to change."""
    with suppress(FactoryError):
        if fleet.renew(name, settings.machine, NODE_LEASE_SECONDS) is not None:
            fleet.set_state(name, state)


async def _set_up_node(settings: Settings, name: str, slots: int) -> None:
    """The node's pool (one more than its slots, so that cleaning never waits for a ticket) and deployments."""
    from prefect.client.orchestration import get_client

    with _translated(f"node {name!r}"):
        async with get_client() as client:
            await ensure_pool(client, pool_name(name), slots + 1)
            await apply_all(client, pool_name(name), node_table(name), str(empty_folder(settings)))
            clean = await client.read_deployment_by_name(f"clean-node/{name}")
            await client.create_flow_run_from_deployment(clean.id)


def _requeue_dead(claims: Claims, flow_run: str) -> None:
    """The process of a run ended. A ticket it still holds goes to whoever has room, at once."""
    with suppress(FactoryError):  # the database is away: the lease ends, and the ticket goes out then
        for claim in claims.held():
            if claim.flow_run == flow_run:
                claims.requeue(claim, f"its process on node {claim.node} died")


def _live(
    fleet: Fleet,
    claims: Claims,
    settings: Settings,
    name: str,
    worker: Worker,
    say: Say,
    memory: Memory | None = None,
) -> None:
    """Renew the node's lease; stop taking work when it drains, and end when it left, or drained and is done."""
    while worker.alive:
        with suppress(Unreachable):  # the database may come back; a lease that ends meanwhile sends tickets elsewhere
            state = fleet.renew(name, settings.machine, NODE_LEASE_SECONDS)
            if state is None:
                raise ConfigError(f"another machine joined as {name!r}; choose another --name")
            mine = [claim for claim in claims.held() if claim.node == name]
            if state == "left" or (state == "draining" and not mine):
                say(f"node {name!r} leaves")
                return
        if memory is not None:
            memory.keep_running()
        time.sleep(HEARTBEAT_SECONDS)
    raise _ended(settings, name)


def _ended(settings: Settings, name: str) -> Unreachable:
    return Unreachable(
        f"the worker of node {name!r} ended, or did not start; look into {str(settings.root / 'logs')!r} and above"
    )


def leave(settings: Settings, name: str, say: Say) -> None:
    """Drain the node, wait for its runs, then let it end. Raises ConfigError for an unknown node."""
    with open_database(settings) as database:
        fleet, claims = Fleet(database), Claims(database)
        fleet.set_state(name, "draining")
        deadline = time.monotonic() + LEAVE_SECONDS
        while mine := [claim.ticket for claim in claims.held() if claim.node == name and claim.state == "running"]:
            if time.monotonic() > deadline or not _alive(fleet, name):
                break
            say(f"node {name!r} still works on {', '.join(mine)}")
            time.sleep(HEARTBEAT_SECONDS)
        for claim in claims.held():
            if claim.node == name:
                claims.requeue(claim, f"node {name} left")
        fleet.set_state(name, "left")


def _alive(fleet: Fleet, name: str) -> bool:
    return any(node.name == name and node.alive for node in fleet.nodes())


def drain(settings: Settings, name: str) -> NodeState:
    """Give the node no more work; what runs there goes on. Returns its state. Raises ConfigError for an unknown node."""
    with open_database(settings) as database:
        return Fleet(database).set_state(name, "draining")


def listed(settings: Settings) -> list[tuple[Node, list[str]]]:
    """All nodes with the keys of the tickets they hold."""
    with open_database(settings) as database:
        held = Claims(database).held()
        return [(node, [c.ticket for c in held if c.node == node.name]) for node in Fleet(database).nodes()]


def _watch(children: list[subprocess.Popen[bytes]], settings: Settings, api_url: str, say: Say) -> None:
    """Until a child ends that all need, or a signal comes. A node that left may go, and the gateway is started again (OB4):
    tickets are found by polling, too."""
    edits, gateway_due = Edits(settings), math.inf
    while True:
        was, edited = edits.settings, edits.look()
        if edited is not None and _follow(was, edited, say):
            for child in filter(_is_gateway, tuple(children)):
                end_group(child)
                children.remove(child)
            gateway_due = time.monotonic()
        for child in [each for each in children if each.poll() is not None]:
            say(_bearable(child, settings))
            children.remove(child)
            _record(settings, api_url, children)
            if _is_gateway(child):
                gateway_due = time.monotonic() + GATEWAY_AGAIN_SECONDS
        if time.monotonic() >= gateway_due:
            children.append(_start(settings, GATEWAY))
            _record(settings, api_url, children)
            gateway_due = math.inf
        time.sleep(0.5)


def _follow(was: Settings, now: Loaded, say: Say) -> bool:
    """What an edit of factory.yaml changes in what `up` set up (CF1); all else reads it anew. True: the gateway has to.

    With a problem the last good settings count, which may have been good for so short a time that they are news, too.
    """
    say("factory.yaml was read anew" if now.problem is None else f"{now.problem}; nothing new is launched")
    if control_table(now.settings) != control_table(was):
        try:
            asyncio.run(_set_up_control(now.settings))
        except FactoryError as error:
            say(f"the schedules stay as they were, until the next edit or `darkfactory up`: {error}")
    return any(getattr(now.settings, name) != getattr(was, name) for name in ("webhooks", "boards", "repositories"))


def _bearable(child: subprocess.Popen[bytes], settings: Settings) -> str:
    """What to say of a child that ended. Raises Unreachable when nothing goes on without it."""
    arguments = _arguments(child)
    if _is_gateway(child):
        return f"no webhooks for now, boards are still read: the gateway ended{log_hint(_log_of(settings, GATEWAY))}"
    if "join" in arguments and child.returncode == 0:
        return f"node {settings.node_name!r} has left, all else goes on; start `darkfactory up` again to have it back"
    raise Unreachable(
        f"{' '.join(arguments[:3])} ended with status {child.returncode}; "
        f"look into {str(settings.root / 'logs')!r} and run `darkfactory up` again"
    )


def _arguments(child: subprocess.Popen[bytes]) -> list[str]:
    """What we started it with, after the interpreter and its own options."""
    return [str(word) for word in child.args[3:]]  # type: ignore[index]  # our own list


def _is_gateway(child: subprocess.Popen[bytes]) -> bool:
    return _arguments(child) == GATEWAY


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises Stopped while inside; a second one would cut off the ending of what was started."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def down(settings: Settings, say: Say) -> bool:
    """End what `up` of this home left running, by recorded process and start time. False when there was nothing."""
    record = read_record(settings.root)
    if record is None:
        return False
    was_alive = record.up.alive or any(child.alive for child in record.children)
    if record.up.alive:
        say(f"ending `darkfactory up` (process {record.up.pid})")
        _end(record.up, group=False)
    for child in record.children:
        _end(child, group=True)
    record_path(settings.root).unlink(missing_ok=True)
    return was_alive


def _end(child: Child, group: bool) -> None:
    """SIGTERM, and SIGKILL when it is still there; `up` needs the time that its own children take."""
    send = os.killpg if group else os.kill
    for number, seconds in ((signal.SIGTERM, 3 * STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        deadline = time.monotonic() + seconds
        if child.alive:
            with suppress(ProcessLookupError):
                send(child.pid, number)
        while child.alive and time.monotonic() < deadline:
            time.sleep(0.05)
