"""Tickets that ask for an operation: a playbook works them without a model, people are asked where it needs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import NeedsHuman, Unreachable
from infra.llm import ToolCall
from infra.llm.scripted import Answer, on
from tests.flows.conftest import Factory
from tests.flows.test_playbooks import GATED, THREE, Yard
from tests.shop import git, write_ticket

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def yard(factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    made = Yard(factory, tmp_path)
    granted = {"folders": {"STATE": str(made.state)}, "agent": True}
    monkeypatch.setenv(
        "DARKFACTORY_REPOSITORIES", json.dumps({"shop": {"path": str(factory.repository), "operations": granted}})
    )
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "small")
    factory.forget()
    return made


def ticket(yard: Yard, key: str, title: str, label: str = "operation") -> None:
    path = write_ticket(yard.factory.board, key, "Please.", title=title)
    path.write_text(path.read_text().replace("state: ready", f"state: ready\nrepository: shop\nlabels: [{label}]"))


async def work(key: str) -> object:
    from flows.ticket import work_ticket

    return await work_ticket(key)


async def test_a_fitting_playbook_works_the_ticket_without_a_model(yard: Yard) -> None:
    yard.commit(THREE.replace("Move", "Restart"))
    yard.approve()
    ticket(yard, "OP-1", "Restart shop to lab", label="")
    outcome = await work("OP-1")
    assert outcome.decision == "ACCEPT"  # type: ignore[attr-defined]
    assert yard.files()["shop.conf"] == "place=lab\n"
    assert yard.factory.calls() == []
    text = (yard.factory.board / "OP-1.md").read_text()
    assert "did stop, config, start" in text
    assert "state: in review" in text
    assert yard.factory.pull_request("OP-1") is None


@pytest.mark.parametrize("title", ["Move shop to $(id)", "Move shop; touch /x to lab", "Move -rf to lab"])
async def test_a_hostile_title_fits_no_playbook_and_waits_for_a_person(yard: Yard, title: str) -> None:
    yard.commit(THREE)
    yard.approve()
    before = yard.files()
    ticket(yard, "OP-1", f"'{title}'")
    with pytest.raises(
        NeedsHuman, match="No active playbook fits this operation, and the model 'scripted' is too small"
    ):
        await work("OP-1")
    assert yard.files() == before
    assert yard.factory.calls() == []
    assert "state: needs human" in (yard.factory.board / "OP-1.md").read_text()


async def test_a_gate_parks_the_ticket_and_approval_lets_it_go_on_once(yard: Yard) -> None:
    from tasks import services
    from tasks.playbooks import approve_step, wake_ticket

    yard.commit(GATED)
    yard.approve()
    ticket(yard, "OP-1", "Move shop to lab")
    wants = r"Step 'config' of playbook 'move-service' wants to run `place=lab; service=shop; echo .*` and waits for a person"
    with pytest.raises(NeedsHuman, match=wants):
        await work("OP-1")
    run = services.playbooks().of_ticket("folder", "OP-1")
    assert run is not None
    assert run.state == "waiting"

    assert wake_ticket(approve_step(run.id, "ada").id)
    outcome = await work("OP-1")
    assert outcome.decision == "ACCEPT"  # type: ignore[attr-defined]
    assert [each.id for each in services.playbooks().recent("shop")] == [run.id]


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.slow
async def test_a_ticket_goes_on_with_its_own_run_whoever_decided(yard: Yard, said: bool) -> None:
    """A rejected gate is taken back, said on the ticket, and nothing begins anew before a person replies."""
    from flows.playbooks import run_playbook
    from tasks import services
    from tasks.approvals import decide

    yard.commit(GATED)
    yard.approve()
    before = yard.files()
    ticket(yard, "OP-1", "Move shop to lab")
    with pytest.raises(NeedsHuman, match="waits for a person"):
        await work("OP-1")
    (run,) = services.playbooks().recent("shop")
    decide(run.id, said, "ada")
    assert "goes on with ticket 'OP-1'" in (await run_playbook(run.id, suspend=False)).sentence()
    claim = services.claims().find("folder", "OP-1")
    assert claim is not None
    assert claim.state == "retry-queued"
    if said:
        assert (await work("OP-1")).decision == "ACCEPT"  # type: ignore[attr-defined]
    else:
        with pytest.raises(NeedsHuman, match=r"rolled back \(step 'config' was rejected by ada.*taken back: stop"):
            await work("OP-1")
        assert yard.files() == before
    assert [each.id for each in services.playbooks().recent("shop")] == [run.id]


async def test_a_closed_ticket_stays_closed_when_its_run_is_taken_back(yard: Yard) -> None:
    from flows.playbooks import run_playbook
    from tasks import services
    from tasks.approvals import decide

    yard.commit(GATED)
    yard.approve()
    before = yard.files()
    ticket(yard, "OP-1", "Move shop to lab")
    with pytest.raises(NeedsHuman, match="waits for a person"):
        await work("OP-1")
    (run,) = services.playbooks().recent("shop")
    path = yard.factory.board / "OP-1.md"
    path.write_text(path.read_text().replace("state: needs human", "state: done"))
    decide(run.id, False, "ada")
    assert (await run_playbook(run.id, suspend=False)).state == "undone"
    assert yard.files() == before
    assert "state: done" in path.read_text()


async def test_a_ticket_learns_of_a_run_that_ended_just_before_its_process_was_killed(yard: Yard) -> None:
    from flows.playbooks import run_playbook
    from tasks import services
    from tasks.approvals import decide

    yard.commit(GATED)
    yard.approve()
    ticket(yard, "OP-1", "Move shop to lab")
    with pytest.raises(NeedsHuman, match="waits for a person"):
        await work("OP-1")
    (run,) = services.playbooks().recent("shop")
    decide(run.id, True, "ada")
    services.playbooks().move(run.id, "succeeded", expected=("running",))
    await run_playbook(run.id, suspend=False)
    claim = services.claims().find("folder", "OP-1")
    assert claim is not None
    assert claim.state == "retry-queued"
    assert (await work("OP-1")).decision == "ACCEPT"  # type: ignore[attr-defined]


async def test_what_a_model_did_is_not_done_again_when_it_could_not_be_reported(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the model's end and the ticket's."""
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    yard.factory.forget()
    yard.factory.model.rules = [
        on("Greet ada", tool("run", command="echo hello >> $STATE/ada"), tool("finish", done=True, summary="Greeted."))
    ]
    ticket(yard, "OP-1", "Greet ada")
    with monkeypatch.context() as broken:
        broken.setattr("tasks.operating.note_operation", _unreachable)
        with pytest.raises(Unreachable):
            await work("OP-1")
    with pytest.raises(NeedsHuman, match="A model was at work on this operation"):
        await work("OP-1")
    assert yard.files()["ada"] == "hello\n"


async def _unreachable(*_: object) -> None:
    raise Unreachable("the forge is away")


async def test_a_rolled_back_ticket_says_what_was_taken_back_and_a_reply_begins_anew(yard: Yard) -> None:
    from tasks import services

    yard.commit(THREE)
    yard.approve()
    before = yard.files()
    ticket(yard, "OP-1", "Move shop to nowhere")
    for _ in range(2):
        with pytest.raises(NeedsHuman, match=r"rolled back \(step 'start' failed.*taken back: config, stop"):
            await work("OP-1")
    assert yard.files() == before
    assert [each.state for each in services.playbooks().recent("shop")] == ["undone", "undone"]


async def test_a_playbook_of_another_branch_or_that_nobody_approved_does_nothing(yard: Yard) -> None:
    ticket(yard, "OP-1", "Move shop to lab")
    git(yard.factory.repository, "checkout", "-qb", "agent/evil")
    yard.commit(THREE)
    git(yard.factory.repository, "checkout", "-q", "main")
    with pytest.raises(NeedsHuman, match="No active playbook"):
        await work("OP-1")
    yard.commit(THREE)
    with pytest.raises(NeedsHuman, match="No active playbook"):
        await work("OP-1")


def tool(name: str, **arguments: object) -> Answer:
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


@pytest.mark.slow
async def test_three_operations_of_a_capable_model_make_a_playbook_that_a_person_merges(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    yard.factory.forget()
    yard.factory.model.rules = [
        on(f"Greet {name}", tool("run", command="ls"), tool("run", command=f"echo hello > $STATE/{name}"),
           tool("run", command=f"rm $STATE/{name}"), tool("finish", done=True, summary="Greeted with ghp_0123456789abcdefghij."))
        for name in ("ada", "bob", "eve")
    ]  # fmt: skip
    for number, name in enumerate(("ada", "bob", "eve"), 1):
        ticket(yard, f"OP-{number}", f"Greet {name}")
        outcome = await work(f"OP-{number}")
        assert outcome.decision == "ACCEPT"  # type: ignore[attr-defined]
    assert "Greeted with ***" in (yard.factory.board / "OP-1.md").read_text()
    assert {"ada", "bob", "eve"} <= yard.files().keys()  # the destructive command was refused

    branch = git(
        yard.factory.home / "forge" / "shop" / "repo.git",
        "show",
        "agent/playbook-greet:.darkfactory/playbooks/greet.yaml",
    )
    assert 'run: echo hello > "$STATE/$target"' in branch
    assert "provenance:\n- 1\n- 2\n- 3" in branch
    (text,) = (p.read_text() for p in (yard.factory.home / "forge" / "shop" / "pulls").glob("*.md"))
    assert "Greet {target}" in text

    git(
        yard.factory.repository,
        "pull",
        "-q",
        str(yard.factory.home / "forge" / "shop" / "repo.git"),
        "agent/playbook-greet",
    )
    yard.approve("greet")
    calls = len(yard.factory.model.requests)
    ticket(yard, "OP-4", "Greet zoe")
    await work("OP-4")
    assert yard.files()["zoe"] == "hello\n"
    assert len(yard.factory.model.requests) == calls
