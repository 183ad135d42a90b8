"""Playbooks run for real: git, PostgreSQL, Prefect and the sandbox; a granted folder is what they change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ConfigError
from infra.playbooks import PlaybookRun
from tests.flows.conftest import Factory
from tests.shop import git

if TYPE_CHECKING:
    from tasks.playbooks import Ran

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]
THREE = """\
name: move-service
trigger: {pattern: "Move {service} to {place}"}
parameters:
  service: {pattern: "[a-z-]+", description: which}
  place: {pattern: "[a-z0-9]+", description: where}
steps:
- {id: stop, run: 'echo stopped > "$STATE/$service.status"', undo: 'echo up > "$STATE/$service.status"'}
- {id: config, run: 'echo "place=$place" > "$STATE/$service.conf"', undo: 'echo place=home > "$STATE/$service.conf"'}
- {id: start, run: 'test "$place" != nowhere && echo up > "$STATE/$service.status"'}
"""


class Yard:
    """A repository with playbooks, and the folder that its operations may change."""

    def __init__(self, factory: Factory, folder: Path) -> None:
        self.factory, self.state = factory, folder / "state"
        self.state.mkdir()
        self.put("shop.status", "up\n")
        self.put("shop.conf", "place=home\n")

    def put(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.state.iterdir())}

    def commit(self, text: str, name: str = "move-service") -> None:
        path = self.factory.repository / ".darkfactory" / "playbooks" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        git(self.factory.repository, "add", "-A")
        git(self.factory.repository, "commit", "-qm", "A playbook")

    def begin(self, name: str = "move-service", *, ticket: str | None = None, **given: str) -> PlaybookRun:
        from tasks.intake import named_repository, pin
        from tasks.playbooks import begin, find_playbook

        repository = pin(*named_repository("shop"))
        return begin(repository, find_playbook(repository, name), given, "folder" if ticket else None, ticket)

    def approve(self, name: str = "move-service") -> None:
        from tasks import services
        from tasks.intake import named_repository, pin
        from tasks.playbooks import find_playbook

        found = find_playbook(pin(*named_repository("shop")), name)
        services.playbooks().decide("shop", name, "approved", digest=found.digest, by="ada")


@pytest.fixture
def yard(factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    made = Yard(factory, tmp_path)
    monkeypatch.setenv("YARD_WORD", "open-sesame-4711")
    granted = {"folders": {"STATE": str(made.state)}, "secrets": {"WORD": "$YARD_WORD", "OTHER": "$YARD_WORD"}}
    section = {"shop": {"path": str(factory.repository), "operations": granted}}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(section))
    factory.forget()
    return made


async def run(run_id: str) -> Ran:
    from flows.playbooks import run_playbook

    return await run_playbook(run_id, suspend=False)


@pytest.mark.slow
async def test_an_approved_playbook_runs_its_steps_in_order_and_verifies_them(yard: Yard) -> None:
    yard.commit(THREE + 'verify: grep -q up "$STATE/$service.status"\n')
    with pytest.raises(ConfigError, match="waits for approval"):
        yard.begin(service="shop", place="lab")
    yard.approve()

    ran = await run(yard.begin(service="shop", place="lab").id)

    assert (ran.state, ran.done) == ("succeeded", ("stop", "config", "start", "verify"))
    assert yard.files() == {"shop.conf": "place=lab\n", "shop.status": "up\n"}


async def test_a_failure_at_step_three_takes_two_and_one_back_in_reverse(yard: Yard) -> None:
    yard.commit(THREE)
    yard.approve()
    before = yard.files()

    ran = await run(yard.begin(service="shop", place="nowhere").id)

    assert ran.state == "undone"
    assert ran.undone == ("config", "stop")
    assert "step 'start' failed: exit code 1" in ran.reason
    assert yard.files() == before
    assert yard.factory.leftovers() == []


async def test_the_failed_steps_own_undo_runs_first(yard: Yard) -> None:
    yard.commit(THREE.replace("'test \"$place\"", "'echo half > \"$STATE/half\"; test \"$place\"").rstrip().removesuffix("}")
                + ", undo: 'mv \"$STATE/half\" \"$STATE/was-half\"'}\n")  # fmt: skip
    yard.approve()
    ran = await run(yard.begin(service="shop", place="nowhere").id)
    assert ran.undone == ("start", "config", "stop")
    assert "was-half" in yard.files()


async def test_an_undo_that_fails_is_said_loudly_and_the_others_still_run(yard: Yard) -> None:
    yard.commit(THREE.replace("undo: 'echo place=home > \"$STATE/$service.conf\"'", "undo: 'echo no; exit 7'"))
    yard.approve()
    ran = await run(yard.begin(service="shop", place="nowhere").id)
    assert (ran.state, ran.undone, ran.undo_failed) == ("stuck", ("stop",), ("config",))
    assert "UNDO FAILED for: config" in ran.sentence()
    assert yard.files()["shop.status"] == "up\n"

    from tasks.playbooks import settle

    yard.put("shop.conf", "place=home\n")
    settle(ran.run, "clean")
    assert (await run(ran.run)).state == "undone"


GATED = THREE.replace("- {id: config,", "- {id: config, approval: true,")


async def test_a_gate_waits_keeps_what_was_done_and_goes_on_after_approval(yard: Yard) -> None:
    yard.commit(GATED)
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    waiting = await run(started.id)
    assert (waiting.state, waiting.step, waiting.done) == ("waiting", "config", ("stop",))
    assert yard.files()["shop.status"] == "stopped\n"
    assert (await run(started.id)).state == "waiting"

    from tasks.playbooks import approve_step

    approve_step(started.id, "ada")
    yard.put("shop.status", "not touched again\n")
    assert (await run(started.id)).done == ("stop", "config", "start")
    assert yard.files() == {"shop.conf": "place=lab\n", "shop.status": "up\n"}


async def test_a_rejected_gate_takes_everything_back(yard: Yard) -> None:
    from tasks.playbooks import reject_step

    yard.commit(GATED)
    yard.approve()
    before = yard.files()
    started = yard.begin(service="shop", place="lab")
    await run(started.id)
    reject_step(started.id, "ada")
    ran = await run(started.id)
    assert (ran.state, ran.undone) == ("undone", ("stop",))
    assert "rejected by ada" in ran.reason
    assert yard.files() == before


async def test_a_step_found_begun_is_taken_back_and_done_again_and_finished_ones_are_not_repeated(yard: Yard) -> None:
    from tasks import services

    yard.commit(THREE)
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    journal = services.playbooks()
    journal.write(started.id, "stop", 0, "started", before=())
    journal.write(started.id, "stop", 0, "finished", before=("started",))
    journal.write(started.id, "config", 1, "started", before=())
    yard.put("shop.status", "stopped, once\n")
    yard.put("shop.conf", "half wri")

    ran = await run(started.id)
    assert (ran.state, ran.done) == ("succeeded", ("stop", "config", "start"))
    assert yard.files()["shop.conf"] == "place=lab\n"


@pytest.mark.parametrize(("how", "state"), [("done", "succeeded"), ("again", "succeeded"), ("undo", "undone")])
async def test_a_step_in_doubt_without_an_undo_stops_for_a_person(yard: Yard, how: str, state: str) -> None:
    from tasks import services
    from tasks.playbooks import settle

    yard.commit(THREE)
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    journal = services.playbooks()
    for place, step in enumerate(("stop", "config", "start")):
        journal.write(started.id, step, place, "started", before=())
        if step != "start":
            journal.write(started.id, step, place, "finished", before=("started",))

    yard.put("shop.status", "stopped\n")

    stuck = await run(started.id)
    assert (stuck.state, stuck.undone) == ("stuck", ())
    assert "nothing says whether it was done" in stuck.reason
    settle(started.id, how)
    assert (await run(started.id)).state == state
    assert yard.files()["shop.status"] == ("stopped\n" if how == "done" else "up\n")


async def test_a_rollback_that_was_killed_is_finished(yard: Yard) -> None:
    from tasks import services

    yard.commit(THREE)
    yard.approve()
    before = yard.files()
    started = yard.begin(service="shop", place="lab")
    journal = services.playbooks()
    for place, step in enumerate(("stop", "config")):
        journal.write(started.id, step, place, "started", before=())
        journal.write(started.id, step, place, "finished", before=("started",))
    journal.move(started.id, "undoing", expected=("running",), reason="step 'start' failed", failed=True)
    journal.write(started.id, "config", 1, "undoing", before=("finished",))
    yard.put("shop.status", "stopped\n")
    yard.put("shop.conf", "pla")

    ran = await run(started.id)
    assert (ran.state, ran.undone) == ("undone", ("config", "stop"))
    assert yard.files() == before


def playbook_command(*arguments: str, url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PREFECT_API_URL": url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "deployments", "playbook", *arguments, "--json"], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


async def test_kill_nine_in_the_middle_of_a_step_and_the_run_goes_on(yard: Yard, prefect_url: str) -> None:
    slow = 'echo x >> "$STATE/begun"; test -e "$STATE/quick" || sleep 60; echo "place=$place" > "$STATE/$service.conf"'
    yard.commit(THREE.replace('echo "place=$place" > "$STATE/$service.conf"', slow))
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    child = playbook_command("run", "--resume", started.id, url=prefect_url)
    deadline = time.monotonic() + 120
    while not (yard.state / "begun").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    yard.put("quick", "")

    ran = await run(started.id)
    assert (ran.state, ran.done) == ("succeeded", ("stop", "config", "start"))
    assert yard.files()["begun"] == "x\nx\n"
    assert yard.files()["shop.conf"] == "place=lab\n"


@pytest.mark.slow
async def test_a_run_by_hand_needs_no_server(yard: Yard) -> None:
    yard.commit(THREE)
    yard.approve()
    nobody = "http://127.0.0.1:9/api"
    child = playbook_command("run", "move-service", "--set", "service=shop", "--set", "place=lab", url=nobody)
    out, err = child.communicate(timeout=180)
    assert child.returncode == 0, err
    assert json.loads(out)["state"] == "succeeded"


async def test_two_failures_in_five_runs_disable_it_until_it_is_approved_again(yard: Yard) -> None:
    yard.commit(THREE)
    yard.approve()
    for place in ("nowhere", "lab", "nowhere"):
        await run(yard.begin(service="shop", place=place).id)
    with pytest.raises(
        ConfigError, match=r"disabled .2 of its last 3 runs failed, the last one because step 'start' failed"
    ):
        yard.begin(service="shop", place="lab")
    yard.approve()
    assert (await run(yard.begin(service="shop", place="lab").id)).state == "succeeded"


async def test_a_changed_file_needs_approval_again(yard: Yard) -> None:
    yard.commit(THREE)
    yard.approve()
    yard.commit(THREE.replace("echo stopped", "echo halted"))
    with pytest.raises(ConfigError, match="changed since it was approved"):
        yard.begin(service="shop", place="lab")


async def test_a_disabled_playbook_stays_disabled_when_its_file_changes(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import services

    monkeypatch.setenv("DARKFACTORY_PLAYBOOKS", json.dumps({"auto_approve": True}))
    yard.factory.forget()
    yard.commit(THREE)
    yard.begin(service="shop", place="lab")
    services.playbooks().decide(
        "shop", "move-service", "disabled", digest="of what it was", by="ada", reason="not today"
    )
    with pytest.raises(ConfigError, match=r"disabled \(not today\)"):
        yard.begin(service="shop", place="lab")


async def test_what_was_put_right_by_hand_is_not_taken_back_again(yard: Yard) -> None:
    from tasks import services
    from tasks.playbooks import settle

    yard.commit(THREE)
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    journal = services.playbooks()
    for place, step in enumerate(("stop", "config", "start")):
        journal.write(started.id, step, place, "started", before=())
        if step != "start":
            journal.write(started.id, step, place, "finished", before=("started",))
    assert (await run(started.id)).state == "stuck"
    yard.put("shop.conf", "by hand\n")

    settle(started.id, "clean")
    ran = await run(started.id)
    assert (ran.state, ran.undone) == ("undone", ("start", "config", "stop"))
    assert yard.files()["shop.conf"] == "by hand\n"


async def test_a_run_goes_on_where_the_mirror_is_older_than_its_playbook(yard: Yard) -> None:
    from tasks import services
    from tasks.intake import named_repository, pin

    yard.commit(THREE)
    yard.approve()
    old = services.settings().root / "repos"
    pin(*named_repository("shop"))
    old.rename(old.with_name("repos-then"))
    yard.commit("# newer\n" + THREE)
    yard.approve()
    started = yard.begin(service="shop", place="lab")
    subprocess.run(["rm", "-rf", str(old)], check=True)
    old.with_name("repos-then").rename(old)  # as on a machine that has not looked since

    assert (await run(started.id)).state == "succeeded"


async def test_a_bad_command_line_is_a_clear_error(yard: Yard, tmp_path: Path) -> None:
    from deployments.__main__ import playbook_run
    from deployments.playbooks import observe
    from tasks import services

    with pytest.raises(ConfigError, match="leave out --set and --dry-run"):
        playbook_run(resume="a-run", dry_run=True)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for file, title, commands, said in (
        (binary, None, (), "binary.yaml"),
        (None, "x" * 301, ("ls",), "title: .*300"),
        (None, "Clear", ("",), "steps.0.run: .*1 character"),
        (None, "Clear ☃", ("a\nb",), "steps.0.run: "),
        (None, "Clear", ("ls",) * 9, "steps: .*8 items"),
    ):
        with pytest.raises(ConfigError, match=said):
            observe(services.settings(), "shop", file, title, commands)


async def test_a_ticket_gets_exactly_one_run_unless_it_was_rolled_back(yard: Yard) -> None:
    yard.commit(THREE)
    yard.approve()
    first = yard.begin(ticket="T-1", service="shop", place="nowhere")
    assert yard.begin(ticket="T-1", service="shop", place="lab").id == first.id
    await run(first.id)
    second = yard.begin(ticket="T-1", service="shop", place="lab")
    assert second.id != first.id
    assert (await run(second.id)).state == "succeeded"
    assert yard.begin(ticket="T-1", service="shop", place="lab").id == second.id


async def test_a_skipped_step_is_neither_run_nor_undone(yard: Yard) -> None:
    yard.commit(
        THREE.replace("- {id: config,", "- {id: config, when: 'place != \"nowhere\" and steps.stop.exit == 0',")
    )
    yard.approve()
    ran = await run(yard.begin(service="shop", place="nowhere").id)
    assert (ran.skipped, ran.undone) == (("config",), ("stop",))


async def test_a_secret_reaches_only_the_playbook_that_names_it_and_stands_nowhere(yard: Yard) -> None:
    from tasks import services

    shows = THREE.replace("steps:", "secrets: [WORD]\nsteps:").replace("'test", '\'echo "$WORD|$OTHER"; test')
    yard.commit(shows)
    yard.approve()
    ran = await run(yard.begin(service="shop", place="nowhere").id)
    assert "exit code 1: ***|" in ran.reason
    assert "open-sesame" not in services.playbooks().run(ran.run).model_dump_json()


async def test_a_secret_that_is_not_granted_is_refused_before_anything_runs(yard: Yard) -> None:
    yard.commit(THREE.replace("steps:", "secrets: [ELSE]\nsteps:"))
    yard.approve()
    with pytest.raises(ConfigError, match=r"names the secrets \['ELSE'\], which are not in `operations.secrets`"):
        yard.begin(service="shop", place="lab")


async def test_a_broken_file_is_named_with_its_line_and_the_others_still_run(yard: Yard) -> None:
    from tasks.intake import named_repository, pin
    from tasks.playbooks import shelf_of

    yard.commit(THREE)
    yard.commit(THREE.replace("name: move", "name: other").replace("undo:", "undoo:", 1), "other-service")
    shelf = shelf_of(pin(*named_repository("shop")))
    assert [(each.name, each.state) for each in shelf] == [
        ("move-service", "waits for approval"),
        ("other-service", "broken"),
    ]
    assert (
        "other-service.yaml' is not valid; correct these and commit:\n  line 7: steps.0.undoo: no such name"
        in shelf[1].problem
    )
    yard.approve()
    assert (await run(yard.begin(service="shop", place="lab").id)).state == "succeeded"


async def test_a_step_sees_neither_the_machine_nor_its_network(yard: Yard, prefect_url: str) -> None:
    looks = f"'! ls {yard.state.parent} && ! curl -s -m 3 {prefect_url}/health && test"
    yard.commit(THREE.replace("'test", looks))
    yard.approve()
    assert (await run(yard.begin(service="shop", place="lab").id)).state == "succeeded"


@pytest.fixture
async def node(yard: Yard, prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A real worker with the deployment that `darkfactory up` makes."""
    from prefect.client.orchestration import get_client

    from deployments.definitions import apply, ensure_pool, node_table

    monkeypatch.setenv("DARKFACTORY_NODE", "n1")
    yard.factory.forget()
    (definition,) = (each for each in node_table("n1") if each.entrypoint.endswith("run_playbook"))
    empty = yard.state.parent / "empty"
    empty.mkdir()
    async with get_client() as client:
        await ensure_pool(client, definition.pool, 1)
        await apply(client, definition, str(empty))
    environment = {**os.environ, "PREFECT_API_URL": prefect_url, "PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "0.5",
                   "PREFECT_HOME": str(yard.factory.home), "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
                   "PREFECT_LOCAL_STORAGE_PATH": str(yard.factory.home / "results")}  # fmt: skip
    command = [sys.executable, "-P", "-m", "deployments.worker", "--pool", definition.pool, "--slots", "1"]
    with (yard.state.parent / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    yield
    worker.terminate()
    worker.wait(30)


@pytest.mark.parametrize("approve", [True, False])
@pytest.mark.slow
async def test_a_gate_is_a_suspended_run_that_a_person_resumes(yard: Yard, node: None, approve: bool) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType

    from tasks import services
    from tasks.approvals import decide, hand_over, resume_suspended
    from tasks.playbooks import ran

    yard.commit(GATED)
    yard.approve()
    before = yard.files()
    started = yard.begin(service="shop", place="lab")
    assert (await run(started.id)).state == "waiting"
    assert await hand_over(services.playbooks().run(started.id))

    async def state() -> StateType | None:
        found = services.playbooks().run(started.id)
        async with get_client() as client:
            flow_run = await client.read_flow_run(found.flow_run) if found.flow_run else None  # type: ignore[arg-type]  # as text
        return flow_run.state.type if flow_run and flow_run.state else None

    await until(lambda: state(), StateType.PAUSED)
    if approve:  # as the command line does it
        assert await resume_suspended(decide(started.id, True, "ada"), True, "ada")
    else:  # as Prefect's pages do it
        async with get_client() as client:
            found = services.playbooks().run(started.id).flow_run
            await client.resume_flow_run(found, run_input={"approve": False, "by": "eve"})  # type: ignore[arg-type]  # as text
    await until(lambda: state(), StateType.COMPLETED)
    ended = ran(started.id)
    assert ended.state == ("succeeded" if approve else "undone")
    assert yard.files() == ({"shop.conf": "place=lab\n", "shop.status": "up\n"} if approve else before)
    assert approve or "rejected by eve" in ended.reason


async def until(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while (found := await ask()) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.3)
