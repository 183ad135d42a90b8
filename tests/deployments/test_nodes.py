"""`darkfactory up` for real: server, work pool, limits, deployments and a worker that runs what it is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deployments.definitions import DEPLOYMENTS
from deployments.engine import ServerRecord, free_port, read_record

ROOT = Path(__file__).parents[2]
FLOW = """
from prefect import flow

@flow(name="greet")
async def greet(name: str) -> None:
    print("hello", name)
"""
APPLY = """
import asyncio, sys
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from deployments.definitions import Definition, apply

async def main():
    async with get_client() as client:
        await apply(client, Definition("greet", "greeting.greet", "node", None, (), ""), sys.argv[1])
    run = await run_deployment("greet/greet", parameters={"name": "you"}, timeout=90, poll_interval=0.5)
    print(run.state.type.value)

asyncio.run(main())
"""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def worker_of(home: Path) -> ServerRecord | None:
    record = read_record(home)
    return record if record and len(record.children) == 2 else None


@pytest.fixture
def environment(tmp_path: Path, database_url: str) -> dict[str, str]:
    (tmp_path / "greeting.py").write_text(FLOW)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    own = {"HOME": str(tmp_path), "DARKFACTORY_HOME": str(tmp_path), "DARKFACTORY_DATABASE_URL": database_url}
    return {**kept, **own, "PYTHONPATH": f"{ROOT}:{tmp_path}"}


@pytest.fixture
def up(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "deployments", "up", "--port", str(free_port())]
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=log)
    try:
        assert wait_until(lambda: worker_of(tmp_path) is not None or process.poll() is not None, 150)
        assert process.poll() is None, (tmp_path / "up.log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.integration
def test_a_node_runs_deployments_and_leaves_nothing_behind(
    tmp_path: Path, environment: dict[str, str], up: subprocess.Popen[bytes]
) -> None:
    record = worker_of(tmp_path)
    assert record
    api = httpx.Client(base_url=record.api_url, timeout=20)
    with api:
        assert api.get("/work_pools/node").json()["concurrency_limit"] == 2
        known = {deployment["name"] for deployment in api.post("/deployments/filter", json={}).json()}
        assert known == {definition.name for definition in DEPLOYMENTS}
        limits = api.post("/v2/concurrency_limits/filter", json={}).json()
        assert {"node": 2}.items() <= {limit["name"]: limit["limit"] for limit in limits}.items()
    assert httpx.get(record.ui_url, timeout=20, follow_redirects=True).status_code == 200

    again = [sys.executable, "-P", "-m", "deployments", "up"]
    second = subprocess.run(
        again, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (second.returncode, "already up at" in second.stderr) == (2, True)

    talking = {**environment, "PREFECT_API_URL": record.api_url, "PREFECT_HOME": str(tmp_path / "prefect")}
    empty = str(tmp_path / "prefect" / "empty")
    run = subprocess.run(
        [sys.executable, "-P", "-c", APPLY, empty], env=talking, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert run.stdout.split()[-1:] == ["COMPLETED"], run.stderr

    up.send_signal(signal.SIGTERM)
    assert up.wait(60) == 0
    assert not [child for child in record.children if child.alive]
    assert read_record(tmp_path) is None
