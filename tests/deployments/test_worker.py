"""The worker of a node against a real Prefect server: what it starts, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deployments.run_process import LOG_BYTES
from infra.processes import UNMARKED, identity, marked

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class Pool:
    """A work pool of the server with a deployment of each sample flow, seen through the server's own API."""

    def __init__(self, api: httpx.Client, folder: Path, slots: int) -> None:
        self.api, self.folder, self.name = api, folder, f"pool-{uuid4().hex[:8]}"
        self._post("/work_pools/", name=self.name, type="process", concurrency_limit=slots)

    def _post(self, address: str, **body: Any) -> Any:
        answer = self.api.post(address, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def deploy(self, flow: str, **more: Any) -> str:
        flow_id = self._post("/flows/", name=flow)["id"]
        deployment = self._post(
            "/deployments/", name=self.name, flow_id=flow_id, work_pool_name=self.name,
            entrypoint=f"tests.deployments.sample_flows.{flow}", path=str(self.folder),
            parameters={"folder": str(self.folder)}, **more,
        )  # fmt: skip
        return str(deployment["id"])

    def start(self, flow: str, **parameters: str) -> str:
        return str(self._post(f"/deployments/{self.deploy(flow)}/create_flow_run", parameters=parameters)["id"])

    def miss(self, flow: str, count: int, every_seconds: float = 900, until: float = 120) -> str:
        """A deployment whose schedule came due this often while nobody worked, the last time `until` seconds ago or before."""
        anchor = datetime.now(UTC) - timedelta(seconds=1)
        schedule = {"schedule": {"interval": every_seconds, "anchor_date": anchor.isoformat()}, "active": True}
        deployment, now = self.deploy(flow, schedules=[schedule]), datetime.now(UTC)
        start = now - timedelta(seconds=min(2 * 86_400, (count - 0.5) * every_seconds))
        span = {"start_time": start, "end_time": now - timedelta(seconds=until)}
        body = {name: at.isoformat() for name, at in span.items()} | {"min_runs": count}
        self.api.post(f"/deployments/{deployment}/schedule", json=body).raise_for_status()
        return deployment

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        return list(self._post("/flow_runs/filter", deployments={"id": {"any_": [deployment]}}))

    def state(self, run: str) -> str:
        return str(self.api.get(f"/flow_runs/{run}").json()["state_type"])

    def ended(self, run: str, seconds: float = 30) -> str:
        wait_until(lambda: self.state(run) in FINAL, seconds)
        return self.state(run)

    def cancel(self, run: str) -> None:
        self._post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=True)

    def lingering(self, name: str, seconds: float = 30) -> list[int]:
        """The run's own process, the one with its own session, and the daemon."""
        assert wait_until((self.folder / name).exists, seconds), "the run did not start"
        return [int(pid) for pid in (self.folder / name).read_text().split()]

    def statuses(self) -> list[str]:
        return [worker["status"] for worker in self._post(f"/work_pools/{self.name}/workers/filter")]


IN_A_THREAD = """
import sys, time
from deployments.worker import Worker
from infra.settings import load_settings

def say(*words):
    print(*words, flush=True)

started = lambda run, pid, began: say("started", run, pid, began)
with Worker(load_settings(), sys.argv[1], 1, on_started=started, on_ended=lambda run: say("ended", run)) as worker:
    sys.stdin.readline()
    say(worker.alive)
say(worker.alive)
"""


def environment(url: str, home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept, "HOME": str(home), "DARKFACTORY_HOME": str(home), "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": url, "PYTHONPATH": str(ROOT),
    }  # fmt: skip


class WorkerProcess:
    """`python -m deployments.worker`, from outside."""

    def __init__(self, pool: Pool, url: str, home: Path) -> None:
        self.pool, self.home = pool, home
        command = [sys.executable, "-P", "-m", "deployments.worker", "--pool", pool.name, "--slots", "2"]
        with (home / "worker.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment(url, home), cwd=home, stdout=log, stderr=log)

    def children(self) -> list[int]:
        return [pid for pid in pids_of_all() if parent(pid) == self.process.pid]


def pids_of_all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def gone(pids: list[int], seconds: float = 15) -> bool:
    return bool(wait_until(lambda: not any(identity(pid) for pid in pids), seconds))


class Node:
    """A pool and its worker, started again after a test that ended it: a start takes seconds."""

    def __init__(self, url: str, api: httpx.Client, folder: Path) -> None:
        self._url, self._api, self._folder = url, api, folder
        self._worker: WorkerProcess | None = None
        self._starts = 0

    def pool(self, folder: Path) -> Pool:
        return Pool(self._api, folder, slots=2)

    def worker(self) -> WorkerProcess:
        if self._worker is None or self._worker.process.poll() is not None:
            self._starts += 1
            home = self._folder / str(self._starts)
            home.mkdir()
            pool = self.pool(home)
            self._worker = WorkerProcess(pool, self._url, home)
            assert wait_until(lambda: pool.statuses() == ["ONLINE"], 60), (home / "worker.log").read_text()
        return self._worker

    def stop(self) -> None:
        if self._worker:
            self._worker.process.send_signal(signal.SIGTERM)
            self._worker.process.wait(60)


@pytest.fixture(scope="module")
def node(prefect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with httpx.Client(base_url=prefect_url, timeout=30) as api:
        made = Node(prefect_url, api, tmp_path_factory.mktemp("node"))
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def worker(node: Node) -> WorkerProcess:
    return node.worker()


@pytest.fixture
def pool(worker: WorkerProcess) -> Pool:
    return worker.pool


@pytest.mark.slow
def test_a_run_is_forked_into_a_session_an_empty_folder_and_a_log_of_its_own(pool: Pool, worker: WorkerProcess) -> None:
    run = pool.start("greet")
    assert pool.ended(run) == "COMPLETED", (worker.home / "worker.log").read_text()
    _, pid, session, mark, folder = (worker.home / "greeted").read_text().split()
    assert (pid, mark) == (session, run)
    assert (Path(folder), list(Path(folder).iterdir())) == (worker.home / "prefect" / "empty", [])
    assert "hello from the run" in (worker.home / "logs" / "runs" / f"{run}.log").read_text()
    assert gone([int(pid)])


def test_a_killed_run_is_reported_crashed_and_leaves_no_process(pool: Pool, worker: WorkerProcess) -> None:
    """I13, RC8: not even a daemon that shook off parent, session and environment. OB1: its log says whose it was."""
    run = pool.start("linger", name="killed")
    pids = pool.lingering("killed")
    log = (worker.home / "logs" / "runs" / f"{run}.log").read_text()
    assert (
        f"level=info logger=tasks.sample board=shop ticket=SHOP-7 run={run} outcome=lingers reason=a\\nb with ***\n"
        in log
    )
    assert {pids[0], pids[1]} <= set(marked(run))
    os.kill(pids[0], signal.SIGKILL)
    assert pool.ended(run, 10) == "CRASHED"
    assert gone(pids)
    assert marked(run) == []


def test_a_cancelled_run_ends_with_its_tree(pool: Pool, worker: WorkerProcess) -> None:
    run = pool.start("linger", name="cancelled")
    pids = pool.lingering("cancelled")
    pool.cancel(run)
    assert wait_until(lambda: pool.state(run) == "CANCELLED", 20), pool.state(run)
    assert gone(pids, 0)


def test_no_more_runs_than_slots_are_at_work(pool: Pool, worker: WorkerProcess) -> None:
    runs = [pool.start("linger", name=str(number)) for number in range(3)]
    assert wait_until(lambda: sum(pool.state(run) == "RUNNING" for run in runs) == 2)
    time.sleep(2)
    assert len([name for name in ("0", "1", "2") if (pool.folder / name).exists()]) == 2
    pool.cancel(next(run for run in runs if pool.state(run) == "RUNNING"))
    assert wait_until(lambda: all((pool.folder / name).exists() for name in ("0", "1", "2")))
    for run in runs:
        if pool.state(run) == "RUNNING":  # one whose process is gone would never be called cancelled
            pool.cancel(run)
    assert {pool.ended(run) for run in runs} == {"CANCELLED"}


def test_of_the_runs_that_a_schedule_missed_the_latest_is_made_up_for(pool: Pool) -> None:
    """A machine that slept for a night would begin the day with a hundred ticks in a row."""
    deployment = pool.miss("greet", 30)
    due = max(run["expected_start_time"] for run in pool.runs(deployment))
    assert wait_until(lambda: [run["state_type"] for run in pool.runs(deployment)] == ["COMPLETED"], 60)
    assert [run["expected_start_time"] for run in pool.runs(deployment)] == [due]


def test_of_the_runs_of_a_quick_schedule_those_of_the_last_minute_are_dropped_quietly(
    pool: Pool, worker: WorkerProcess
) -> None:
    """They are not late yet, but deleted with the late ones: a run that is gone cannot be taken."""
    deployment = pool.miss("greet", 4, every_seconds=25, until=0)  # two slots: it gets the late one and one that is not
    assert wait_until(lambda: "COMPLETED" in [run["state_type"] for run in pool.runs(deployment)], 20)
    assert "Failed to update state" not in (worker.home / "worker.log").read_text()


def test_a_worker_that_is_told_to_stop_ends_its_runs_and_itself(pool: Pool, worker: WorkerProcess) -> None:
    run = pool.start("linger", name="stopped")
    pids = [*pool.lingering("stopped"), *worker.children()]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    assert gone(pids, 0)
    assert pool.ended(run, 5) == "CRASHED"


def test_a_killed_guard_takes_its_run_with_it(pool: Pool, worker: WorkerProcess) -> None:
    run = pool.start("linger", name="unguarded")
    pids = pool.lingering("unguarded")
    guard = parent(pids[0])
    assert guard in marked(run)
    os.kill(guard, signal.SIGKILL)
    assert pool.ended(run, 10) == "CRASHED"
    assert gone(pids)


@pytest.mark.slow
def test_a_killed_spawner_loses_its_runs_and_is_started_again(pool: Pool, worker: WorkerProcess) -> None:
    run = pool.start("linger", name="lost")
    pids = pool.lingering("lost")
    (spawner,) = [pid for pid in worker.children() if mark_of(pid) == UNMARKED]
    os.kill(spawner, signal.SIGKILL)
    assert pool.ended(run, 10) == "CRASHED"
    assert gone(pids)
    assert pool.ended(pool.start("greet")) == "COMPLETED"


def test_a_killed_worker_takes_its_runs_with_it(pool: Pool, worker: WorkerProcess) -> None:
    """RC10: once these are gone, the ticket can be dispatched again."""
    run = pool.start("linger", name="orphaned")
    pids = [*pool.lingering("orphaned"), *worker.children()]
    assert any(mark_of(pid) == UNMARKED for pid in pids)
    worker.process.kill()
    assert gone(pids)
    assert marked(run) == []


def mark_of(pid: int) -> str | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry.decode().partition("=")[2] for entry in entries if entry.startswith(b"DARKFACTORY_RUN=")), None)


@pytest.mark.slow
def test_a_thread_works_until_it_is_left_and_tells_who_started_and_ended(
    prefect_url: str, node: Node, tmp_path: Path
) -> None:
    """The log of a run that shouts 12 MB is bounded, too."""
    pool = node.pool(tmp_path)
    command = [sys.executable, "-P", "-c", IN_A_THREAD, pool.name]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        command, env=environment(prefect_url, tmp_path), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=log, text=True,
    ) as working:  # fmt: skip
        run = pool.start("shout")
        assert pool.ended(run, 60) == "COMPLETED", (tmp_path / "log").read_text()
        assert working.stdout
        started, ended = working.stdout.readline().split(), working.stdout.readline().split()
        said, _ = working.communicate("\n", timeout=30)
    assert (started[:2], ended) == (["started", run], ["ended", run])
    assert started[2].isdigit()
    assert (said.split(), working.returncode) == (["True", "False"], 0)
    logs = list((tmp_path / "logs" / "runs").iterdir())
    assert {path.name for path in logs} == {f"{run}.log", f"{run}.log.1"}
    assert all(path.stat().st_size <= LOG_BYTES for path in logs)
    assert " 119 xxx" in (tmp_path / "logs" / "runs" / f"{run}.log").read_text()
