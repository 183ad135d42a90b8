"""This machine as a node: Prefect's server, the work pool, the deployments and a worker, under one foreground command."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from deployments.definitions import DEPLOYMENTS, apply
from deployments.engine import (
    HOST,
    NODE_LIMIT,
    STOP_SECONDS,
    Child,
    ServerRecord,
    end_group,
    engine_environment,
    ensure_limits,
    free_port,
    read_record,
    record_path,
    start_child,
    start_server,
    wait_for_server,
    write_record,
)
from infra.errors import ConfigError, Unreachable
from infra.llm.local import process_started
from infra.settings import Settings

Say = Callable[[str], None]


class Stopped(Exception):
    """SIGTERM or SIGINT arrived."""


def up(settings: Settings, port: int, say: Say) -> None:
    """Run server and worker until SIGINT or SIGTERM, then end them. Raises Unreachable when one of them dies.

    Raises ConfigError when another `up` of this home runs. A taken port is replaced by a free one.
    """
    record = read_record(settings.root)
    if record and record.up.alive:
        raise ConfigError(f"already up at {record.ui_url} (process {record.up.pid}); `darkfactory down` ends it")
    down(settings, say)
    with _stopping_on_signals(), suppress(Stopped):
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
        asyncio.run(_set_up_node(settings))
        children.append(_start_worker(settings))
        _record(settings, api_url, children)
        say(f"Prefect's pages: {api_url.removesuffix('/api')}")
        say(f"work pool {NODE_LIMIT!r} with {settings.model_slots} slot(s); Ctrl-C ends all")
        _watch(children, settings)
    finally:
        for child in reversed(children):
            end_group(child)
        record_path(settings.root).unlink(missing_ok=True)


def _record(settings: Settings, api_url: str, children: list[subprocess.Popen[bytes]]) -> None:
    record = ServerRecord(
        up=_identity(os.getpid()), children=tuple(_identity(c.pid) for c in children), api_url=api_url
    )
    write_record(settings.root, record)


def _identity(pid: int) -> Child:
    return Child(pid=pid, started=process_started(pid) or "")


async def _set_up_node(settings: Settings) -> None:
    """Pool, limits and deployments; all of it may be there already."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    empty = settings.root / "prefect" / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    await ensure_limits(settings)
    async with get_client() as client:
        pool = WorkPoolCreate(name=NODE_LIMIT, type="process", concurrency_limit=settings.model_slots)
        await client.create_work_pool(pool, overwrite=True)
        for definition in DEPLOYMENTS:
            await apply(client, definition, str(empty))


def _start_worker(settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", NODE_LIMIT, "--type", "process"]
    limit = ["--limit", str(settings.model_slots), "--no-create-pool-if-not-found"]
    folder = settings.root / "prefect" / "empty"
    environment = {**os.environ, **engine_environment(settings, verbose=True)}  # its output is a log file
    return start_child([*command, *limit], environment, folder, settings.root / "logs" / "prefect-worker.log")


def _watch(children: list[subprocess.Popen[bytes]], settings: Settings) -> None:
    """Until a child ends, which it never should, or a signal comes."""
    while True:
        for child in children:
            if child.poll() is not None:
                raise Unreachable(
                    f"{' '.join(map(str, child.args[3:6]))} ended with status {child.returncode}; "  # type: ignore[index]  # our own list
                    f"look into {str(settings.root / 'logs')!r} and run `darkfactory up` again"
                )
        time.sleep(0.5)


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
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
