"""Prefect's worker of a node: polls a pool and has each run forked from a warm process (`deployments.run_process`).

Polling, states, retries, cancellation and hooks are Prefect's own; what is ours is how a run's process starts and that
nothing of it outlives it. Prefect 3.8.8 is pinned: the parts below `prefect.runner` are not its public interface.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import refresh_global_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_flow_run
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, get_current_settings, temporary_settings
from prefect.states import Crashed
from prefect.utilities.processutils import sanitize_subprocess_env
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables, ProcessWorkerResult

from deployments.engine import engine_environment, read_record
from deployments.run_process import LOST, Answer, Order
from infra import processes
from infra.errors import ConfigError, FactoryError, Unreachable
from infra.releases import INSTALLED, Releases
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

POLL_SECONDS = 0.5
LATE = timedelta(seconds=60)
"""A scheduled run that waited longer was missed, and may not be the only one."""
AGAIN_SECONDS = 10.0
"""Between two tries to reach a server that was away."""
WARM_SECONDS = 120.0
"""Longest wait for the warm process: its imports take 3 s on an idle machine without bytecode."""
END_SECONDS = 60.0
"""Longest wait for a run that was told to end; its guard takes its two graces and some."""
WARM_PACKAGES = (
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "prefect.events.clients",
    "prefect._internal.metrics",
    "anyio._backends._asyncio",
    "flows",
    "infra.boards",
    "infra.pull_requests",
)

Started = Callable[[str, int, str], None]
"""Flow run id, process id, and when that process began (`infra.processes.identity`)."""
Ended = Callable[[str], None]
"""Flow run id; its processes are gone."""
Ready = Callable[[], None]
"""The worker is warm and takes runs now."""

_GAVE_UP = "Service exceeded error threshold"
"""What Prefect's loops raise, as a RuntimeError, when the server did not answer several times in a row."""

_log = logging.getLogger(__name__)


class Run:
    """A run's process as Prefect's `ProcessHandle` wants it, and the scope in which it is ended."""

    wait_after_graceful_kill = True

    def __init__(self, order: Order) -> None:
        self.order = order
        self.pid: int | None = None
        self.returncode: int | None = None
        self.started = ""
        self.clean = False
        self.begun, self.over = asyncio.Event(), asyncio.Event()

    def hear(self, answer: Answer) -> None:
        if answer.what == "started":
            self.pid, self.started = answer.pid, answer.started
        else:
            self.returncode, self.clean = answer.status, answer.clean
            self.over.set()
        self.begun.set()

    def is_alive(self, pid: int) -> bool:
        return not self.over.is_set()

    def graceful_kill(self, pid: int) -> None:
        self._send(signal.SIGTERM)

    def hard_kill(self, pid: int) -> None:
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """Nothing is held: the guard sees to the end of the tree."""

    def _send(self, number: signal.Signals) -> None:
        if self.pid is None or self.over.is_set() or not processes.send(self.pid, self.started, number):
            raise ProcessLookupError(f"the process of flow run {self.order.run!r} is gone")


class Spawner:
    """The warm process, as the worker sees it: started when needed, and again when it died. `code` is the folder of a
    release, None for the installed package; `users` counts who is about to start a run here, or has one."""

    def __init__(self, settings: Settings, code: Path | None = None) -> None:
        self._settings = settings
        self._code = {"PYTHONPATH": str(code)} if code else {}
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._starting = asyncio.Lock()
        self.users = 0
        self._runs: dict[int, Run] = {}
        self._number = 0

    async def start(self) -> None:
        """Return when it is warm. Raises Unreachable."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._spawn()
            process = self._process
        with suppress(TimeoutError):
            async with asyncio.timeout(WARM_SECONDS):
                await self._ready.wait()
        if not self._ready.is_set() or process.returncode is not None:
            raise Unreachable("the process that runs are forked from did not start; its reason is in the worker's log")

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._ready.clear()
        folder = self._settings.root / "prefect" / "empty"
        folder.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "deployments.run_process", *WARM_PACKAGES,
            env={**os.environ, **self._code, processes.MARK: processes.UNMARKED}, cwd=folder, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._listening = asyncio.create_task(self._listen(process))
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hand on what it says; when it dies, all of its runs are lost."""
        assert process.stdout  # noqa: S101  it is a pipe
        try:
            async for line in process.stdout:
                self._hear(Answer.model_validate_json(line))
        except ValueError as error:  # something printed among its words: nobody would hear of its runs any more
            _log.error("the process that runs are forked from does not speak as one: %r", str(error)[:300])
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        self._ready.set()
        for number, run in self._runs.items():
            run.hear(Answer(what="over", number=number, status=LOST))

    def _hear(self, answer: Answer) -> None:
        if answer.what == "ready":
            self._ready.set()
        elif run := self._runs.get(answer.number):
            run.hear(answer)

    @asynccontextmanager
    async def run(self, run_id: str, environment: Mapping[str, str]) -> AsyncIterator[Run]:
        """A process that runs this flow run; when left, it and all it started are gone. Raises Unreachable."""
        await self.start()
        self._number += 1
        home = self._settings.root
        log, folder = home / "logs" / "runs" / f"{run_id}.log", home / "prefect" / "empty"
        order = Order(what="start", number=self._number, run=run_id, environment={**environment, **self._code}, folder=str(folder), log=str(log))  # fmt: skip
        run = self._runs[order.number] = Run(order)
        try:
            await self._say(order)
            await run.begun.wait()
            yield run
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(run)
            del self._runs[order.number]

    async def _end(self, run: Run) -> None:
        """The guard ends the tree and says so; without its word, the tree is searched for here."""
        with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            async with asyncio.timeout(END_SECONDS):
                if not run.over.is_set():
                    await self._say(Order(what="end", number=run.order.number))
                await run.over.wait()
        if not run.clean:
            gone = await asyncio.to_thread(processes.end_run, run.order.run)
            if not gone:
                _log.error("processes of flow run %s do not end: %s", run.order.run, processes.marked(run.order.run))

    async def _say(self, order: Order) -> None:
        stdin = self._process.stdin if self._process else None
        assert stdin is not None  # noqa: S101  start() came first, and it is a pipe
        stdin.write(order.model_dump_json().encode() + b"\n")
        await stdin.drain()

    async def stop(self) -> None:
        """End it; its runs are over by now, or their guards end them."""
        if self._process is None or self._listening is None:
            return
        if self._process.stdin:
            self._process.stdin.close()
        await asyncio.wait({self._listening}, timeout=END_SECONDS)
        if self._process.returncode is None:
            self._process.kill()
        await self._listening


class Spawners:
    """A warm process for each release that runs come from. A run starts on the one that is current then and ends on it.

    A release whose warm process does not start is left, and refused, on this machine at once: the run starts on the one
    before. Runs tagged `installed` never come from a release.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._releases = settings, Releases(settings.root)
        self._by_release: dict[str, Spawner] = {}

    async def start(self) -> None:
        """Return when the current one is warm. Raises Unreachable."""
        async with self._warm(self._releases.current()):
            pass

    @asynccontextmanager
    async def run(self, run_id: str, environment: Mapping[str, str], tags: Sequence[str]) -> AsyncIterator[Run]:
        """As `Spawner.run`."""
        release = INSTALLED if INSTALLED in tags else self._releases.current()
        async with self._warm(release) as spawner, spawner.run(run_id, environment) as run:
            yield run

    @asynccontextmanager
    async def _warm(self, release: str) -> AsyncIterator[Spawner]:
        async with AsyncExitStack() as using:
            try:
                spawner = using.enter_context(self._used(release))
                await spawner.start()
            except (Unreachable, ConfigError):
                if release == INSTALLED:
                    raise
                await using.aclose()
                spawner = await using.enter_async_context(self._warm(self._left(release)))
            yield spawner
        await self._retire()

    def _left(self, release: str) -> str:
        """Which release is current once this one, which does not start, was left."""
        if self._releases.current() == release:
            _log.error("release=%s outcome=refused reason='its warm process does not start'", release)
            with suppress(ConfigError):
                self._releases.roll_back()
        current = self._releases.current()
        return INSTALLED if current == release else current

    @contextmanager
    def _used(self, release: str) -> Iterator[Spawner]:
        if release not in self._by_release:
            self._by_release[release] = Spawner(self._settings, self._releases.path(release))
        spawner = self._by_release[release]
        spawner.users += 1
        try:
            yield spawner
        finally:
            spawner.users -= 1

    async def _retire(self) -> None:
        """End the warm processes of releases that nothing comes from any more."""
        wanted = (self._releases.current(), INSTALLED)
        idle = [name for name, each in self._by_release.items() if each.users == 0 and name not in wanted]
        for spawner in [self._by_release.pop(name) for name in idle]:
            await spawner.stop()

    async def stop(self) -> None:
        """End all of them."""
        for spawner in self._by_release.values():
            await spawner.stop()


def _is_late(run: FlowRun) -> bool:
    due = run.expected_start_time
    return run.auto_scheduled and due is not None and datetime.now(UTC) - due > LATE


class _Starter:
    """Starts one run, in the way Prefect's `FlowRunExecutor` asks for it."""

    def __init__(self, spawner: Spawners, environment: Mapping[str, str], on_started: Started) -> None:
        self._spawner, self._environment, self._on_started = spawner, environment, on_started

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        run_id = str(flow_run.id)
        async with self._spawner.run(run_id, self._environment, flow_run.tags) as run:
            if run.pid is None:
                raise Unreachable("the process that runs are forked from died")
            await asyncio.to_thread(self._on_started, run_id, run.pid, run.started)
            task_status.started(ProcessHandle(run, termination_scope=run))  # type: ignore[arg-type]  # it takes pid and returncode of it
            await run.over.wait()


class NodeWorker(BaseWorker[ProcessJobConfiguration, ProcessVariables, ProcessWorkerResult]):
    """A worker for pools of the type `process`, as Prefect's own one, except for how processes start and end.

    `command` and `working_dir` of a deployment have no effect: there is one way to start a run, in an empty folder.
    """

    type = "process"
    job_configuration = ProcessJobConfiguration
    job_configuration_variables = ProcessVariables

    def __init__(
        self, settings: Settings, pool: str, slots: int, on_started: Started, on_ended: Ended, on_ready: Ready
    ) -> None:
        name = re.sub("[/%]", "-", f"{settings.node_name} {pool}")
        super().__init__(pool, name=name, prefetch_seconds=0, create_pool_if_not_found=False, limit=slots)
        self._spawner = Spawners(settings)
        self._executing = FlowRunExecutorContext()
        self._on_started, self._on_ended, self._on_ready = on_started, on_ended, on_ready

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Beside Prefect's own worker in its registry, not in its place."""
        return "darkfactory-node"

    async def __aenter__(self) -> NodeWorker:
        async with AsyncExitStack() as parts:
            parts.push_async_callback(self._spawner.stop)
            await self._spawner.start()
            await parts.enter_async_context(self._executing)
            await super().__aenter__()
            self._parts = parts.pop_all()
        self._on_ready()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        try:
            await super().__aexit__(*exc_info)
        finally:
            await self._parts.aclose()

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """Without runs whose process is still going: one that is resumed the moment it was suspended ends Prefect's worker
        (3.8.8: "this borrower is already holding one of this CapacityLimiter's tokens"). They are taken at the next poll."""
        going = {run for run in self.limiter.statistics().borrowers if isinstance(run, UUID)}
        found = [each for each in flow_run_response if each.flow_run.id not in going]
        if any(_is_late(each.flow_run) for each in found):
            latest = await self._latest(going)
            found = [each for each in found if not each.flow_run.auto_scheduled or each.flow_run.id in latest]
        return await super()._submit_scheduled_flow_runs(found)

    async def _latest(self, going: set[UUID]) -> set[UUID]:
        """Of each schedule's runs that came due while nobody took them, the latest. The others are deleted: after a night's
        sleep a hundred ticks in a row would find what one finds."""
        due = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        )
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self.work_pool.name]))
        latest: dict[UUID | None, UUID] = {}
        for run in await self.client.read_flow_runs(
            work_pool_filter=pool, flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
        ):
            if run.auto_scheduled and latest.setdefault(run.deployment_id, run.id) != run.id and run.id not in going:
                with suppress(ObjectNotFound):
                    await self.client.delete_flow_run(run.id)
        return set(latest.values())

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Until the run's process and all it started are gone."""
        starter = _Starter(self._spawner, self._environment(flow_run, configuration), self._on_started)
        executor = self._executing.create_executor(
            flow_run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
        )
        execution: FlowRunExecutionResult | None = None

        async def execute(*, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED) -> None:
            nonlocal execution
            execution = await executor.submit(task_status=task_status)

        try:
            async with anyio.create_task_group() as group:
                handle = await group.start(execute)
                if task_status is not None:
                    task_status.started(handle.pid)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(self._on_ended, str(flow_run.id))
        if execution is None or execution.status_code is None:
            raise RuntimeError(f"flow run {str(flow_run.id)!r} could not be started")
        return ProcessWorkerResult(status_code=execution.status_code, identifier=str(execution.handle.pid))

    def _environment(self, flow_run: FlowRun, configuration: ProcessJobConfiguration) -> dict[str, str]:
        """As Prefect's `EngineCommandStarter` makes it, with the line by which a cancellation announces itself."""
        port, token = self._executing.control_channel.register(flow_run.id)
        return sanitize_subprocess_env(
            {
                **configuration.env,
                **get_current_settings().to_environment_variables(exclude_unset=True),
                "PREFECT__FLOW_RUN_ID": str(flow_run.id),
                "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
                "PREFECT__CONTROL_PORT": str(port),
                "PREFECT__CONTROL_TOKEN": token,
            }
        )


async def serve(
    settings: Settings,
    pool: str,
    slots: int,
    stop: asyncio.Event,
    on_started: Started = lambda _run, _pid, _started: None,
    on_ended: Ended = lambda _run: None,
    on_ready: Ready = lambda: None,
) -> None:
    """Run what the pool has, at most `slots` at a time, until `stop`; then end what runs. The callbacks may block.

    A pool has one worker at a time. When Prefect's server is away for longer than its worker bears (12 tries of a minute),
    what runs is ended, and the worker starts again as soon as the server is back. Raises Unreachable, or what Prefect
    raises when its server refuses the worker.
    """
    while not stop.is_set():
        try:
            await _bury(pool, on_ended)
            await _work(NodeWorker(settings, pool, slots, on_started, on_ended, on_ready), stop)
        except (httpx.HTTPError, RuntimeError, ExceptionGroup) as error:
            if not _is_away(error):
                raise
            _log.warning("pool=%s outcome=server-away reason=%r", pool, str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await stop.wait()


def _is_away(error: BaseException) -> bool:
    """Whether Prefect's server could not be reached, or had no database; what it refuses, it will refuse again."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_away(one) for one in error.exceptions)
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError) or _GAVE_UP in str(error)


async def _bury(pool: str, on_ended: Ended) -> None:
    """End what a worker of the pool that was killed had in hand; Prefect counts it as running until somebody says so."""
    states = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    async with get_client() as client:
        left = await client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=states)),
        )
        for run in left:
            await asyncio.to_thread(processes.end_run, str(run.id))
            await client.set_flow_run_state(run.id, Crashed(message="its worker was killed"), force=True)
            await asyncio.to_thread(on_ended, str(run.id))


async def _work(worker: NodeWorker, stop: asyncio.Event) -> None:
    """Until `stop`, or until the worker ends by itself; raises what ended it."""
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: POLL_SECONDS}):
        working = asyncio.create_task(worker.start(printer=_log.info))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        working.result()


class Worker:
    """`serve` in a thread, for callers that are not asynchronous: works while entered, ends its runs when left."""

    def __init__(
        self,
        settings: Settings,
        pool: str,
        slots: int,
        on_started: Started = lambda _run, _pid, _started: None,
        on_ended: Ended = lambda _run: None,
    ) -> None:
        self._arguments = (settings, pool, slots)
        self._callbacks = (on_started, on_ended)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"worker {pool}", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._known, self._warm = threading.Event(), threading.Event()

    @property
    def alive(self) -> bool:
        """False when it ended by itself, which it never should."""
        return self._thread.is_alive()

    def wait(self) -> bool:
        """Return when it takes runs (True), or is not alive or warm after a while (False)."""
        deadline = time.monotonic() + WARM_SECONDS
        while self.alive and time.monotonic() < deadline:
            if self._warm.wait(POLL_SECONDS):
                return True
        return False

    def __enter__(self) -> Worker:
        refresh_global_settings_context()  # the address of the server is known by now
        self._thread.start()
        self._known.wait()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: it ended by itself
            assert self._loop  # noqa: S101  set before `_known`
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2 * END_SECONDS)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._known.set()
        await serve(*self._arguments, self._stop, *self._callbacks, self._warm.set)


def main() -> None:
    """`python -m deployments.worker --pool NAME --slots N`: until SIGTERM or SIGINT, then 0."""
    parser = argparse.ArgumentParser(prog="deployments.worker", description="Runs what a work pool of Prefect has.")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--slots", required=True, type=int)
    wanted = parser.parse_args()
    try:
        settings = load_settings()
        _point_at_server(settings)
        asyncio.run(_serve_until_signal(settings, wanted.pool, wanted.slots))
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _point_at_server(settings: Settings) -> None:
    record = read_record(settings.root)
    url = os.environ.get("PREFECT_API_URL") or (record.api_url if record and record.up.alive else None)
    if url is None:
        raise ConfigError("no Prefect server is known; run `darkfactory up`, or set PREFECT_API_URL")
    os.environ.update(engine_environment(settings, verbose=True), PREFECT_API_URL=url)
    refresh_global_settings_context()


async def _serve_until_signal(settings: Settings, pool: str, slots: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, pool, slots, stop)


if __name__ == "__main__":
    main()
