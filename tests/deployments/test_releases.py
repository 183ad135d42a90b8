"""Runs come from the current release, each ends on the one it began on, and a release that does not start harms no run."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from deployments.definitions import control_table
from deployments.repair import _follow, follow_once
from deployments.worker import Spawners
from infra.database import open_database
from infra.releases import INSTALLED, Releases
from infra.repairs import Repairs
from infra.settings import Settings
from tests.deployments.test_worker import Pool, WorkerProcess
from tests.repairs import Works

ROOT = Path(__file__).parents[2]
OLD, NEW, BROKEN = "1" * 40, "2" * 40, "3" * 40
SPEAKS = """import json, os, sys, time
def say(**words): print(json.dumps(words), flush=True)
say(what="ready")
for line in sys.stdin:
    order = json.loads(line)
    with open(order["log"] + "." + order["run"], "a") as file: file.write(os.environ["PYTHONPATH"])
    if order["what"] == "start": say(what="started", number=order["number"], pid=os.getpid(), started="now")
    else: say(what="over", number=order["number"], status=0, clean=True)
"""
"""A warm process that only speaks as one: which code it came from is what is looked at."""


def release(home: Path, sha: str, text: str) -> None:
    folder = home / "releases" / sha / "deployments"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "run_process.py").write_text(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    release(tmp_path, OLD, SPEAKS)
    release(tmp_path, NEW, SPEAKS)
    release(tmp_path, BROKEN, "raise SystemExit('nothing here works')\n")
    (tmp_path / "logs" / "runs").mkdir(parents=True)
    return tmp_path


def came_from(home: Path, run: str) -> str:
    text = (home / "logs" / "runs" / f"{run}.log.{run}").read_text()
    return next(sha for sha in (OLD, NEW, BROKEN) if sha in text)


async def test_a_run_ends_on_the_release_it_began_on_and_the_next_one_is_new(home: Path) -> None:
    releases, spawners = Releases(home), Spawners(Settings(home=home))
    releases.switch(OLD, INSTALLED)
    async with spawners.run("first", {}, ()) as first:
        releases.switch(NEW, OLD)
        async with spawners.run("second", {}, ()):
            assert set(spawners._by_release) == {OLD, NEW}
        assert first.is_alive(0)
    assert set(spawners._by_release) == {NEW}
    assert (came_from(home, "first"), came_from(home, "second")) == (OLD, NEW)
    await spawners.stop()


async def test_a_release_that_does_not_start_is_left_at_once_and_its_run_starts_on_the_one_before(home: Path) -> None:
    releases, spawners = Releases(home), Spawners(Settings(home=home))
    releases.switch(OLD, INSTALLED)
    releases.switch(BROKEN, OLD)
    async with asyncio.timeout(60), spawners.run("run", {}, ()):
        pass
    assert came_from(home, "run") == OLD
    assert (releases.current(), releases.book.refused) == (OLD, (BROKEN,))
    await spawners.stop()


async def test_a_release_whose_warm_process_says_something_else_is_left_too(home: Path) -> None:
    """A print that an import leaves behind; nobody would hear of its runs."""
    releases, spawners = Releases(home), Spawners(Settings(home=home))
    releases.switch(OLD, INSTALLED)
    loud = "4" * 40
    release(home, loud, "import time\nprint('hello', flush=True)\ntime.sleep(60)\n")
    releases.switch(loud, OLD)
    async with asyncio.timeout(60), spawners.run("run", {}, ()):
        pass
    assert came_from(home, "run") == OLD
    assert releases.book.refused == (loud,)
    await spawners.stop()


GREETS = """from pathlib import Path
from prefect import flow
from infra.releases import running

@flow(name="greet", persist_result=False)
async def greet(folder: str) -> None:
    Path(folder, "greeted").write_text(running())
"""


@pytest.mark.integration
@pytest.mark.slow
def test_a_workers_runs_come_from_the_release_as_soon_as_it_is_switched_to(prefect_url: str, tmp_path: Path) -> None:
    """A real worker, real flow runs, and this very code as the release."""
    place = tmp_path / "releases" / NEW
    for name in ("deployments", "flows", "tasks", "infra"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "tests" / "deployments").mkdir(parents=True)
    (place / "tests" / "deployments" / "sample_flows.py").write_text(GREETS)
    with httpx.Client(base_url=prefect_url, timeout=30) as api:
        pool = Pool(api, tmp_path, slots=2)
        worker = WorkerProcess(pool, prefect_url, tmp_path)
        try:
            assert pool.ended(pool.start("greet"), 90) == "COMPLETED"
            assert (tmp_path / "greeted").read_text() != NEW
            assert Releases(tmp_path).switch(NEW, INSTALLED)
            assert pool.ended(pool.start("greet"), 90) == "COMPLETED"
            assert (tmp_path / "greeted").read_text() == NEW
        finally:
            worker.process.terminate()
            worker.process.wait(60)


def test_what_takes_a_release_back_never_comes_from_one() -> None:
    tables = {enabled: control_table(Settings(repair={"enabled": enabled})) for enabled in (True, False)}  # type: ignore[arg-type]
    for enabled, table in tables.items():
        (repair,) = [each for each in table if each.name == "repair"]
        assert INSTALLED in repair.tags
        assert (repair.every_seconds is not None) == enabled
    assert [each.name for each in tables[True] if INSTALLED in each.tags] == ["repair"]


def test_a_node_goes_on_looking_when_its_folder_cannot_be_read(tmp_path: Path, database_url: str) -> None:
    """A thread that ended would leave this machine on its release for ever."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "releases").write_text("not a folder")
    settings, over = Settings(home=home, database_url=database_url), threading.Event()
    with open_database(settings) as database:
        thread = threading.Thread(target=_follow, args=(settings, Repairs(database), "far", over))
        thread.start()
        thread.join(timeout=1.5)
        looking = thread.is_alive()
        over.set()
        thread.join(timeout=10)
    assert looking


def test_a_node_follows_the_release_that_is_wanted_and_says_what_it_runs(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Works(tmp_path, database_url)
    for name, value in works.environment.items():
        monkeypatch.setenv(name, value)
    settings, node = Settings(), Settings(home=tmp_path / "node")
    with open_database(settings) as database:
        repairs, sha = Repairs(database), works.base()
        assert follow_once(node, repairs, "far", None) == (INSTALLED, "")
        assert not (tmp_path / "node").exists()
        repairs.want(sha, previous=INSTALLED)
        told = follow_once(node, repairs, "far", None)
        assert told == (sha, "")
        assert [(each.node, each.release) for each in repairs.nodes()] == [("far", sha)]
        assert (tmp_path / "node" / "releases" / "current" / "works" / "scale.py").is_file()
        Releases(tmp_path / "node").roll_back()
        release, problem = follow_once(node, repairs, "far", told)
        assert release == INSTALLED
        assert "was refused on this machine" in problem
        repairs.want("0" * 40, previous=sha)
        release, problem = follow_once(node, repairs, "far", told)
        assert release == INSTALLED
        assert problem
        assert repairs.nodes()[0].problem == problem
