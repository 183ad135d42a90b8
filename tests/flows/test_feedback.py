"""The feedback loop and the corpus around whole runs: what a run leaves, and what earlier ones change about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from infra.database import open_database
from infra.errors import FactoryError
from infra.llm.scripted import Fault
from infra.objects import open_objects
from infra.settings import load_settings
from tasks.corpus import Holding, forget, holdings, manifest
from tasks.feedback import START
from tests.flows.conftest import Factory
from tests.flows.test_capable_model import CODER, MENDED, PLAN, REVISE
from tests.made_up_runs import MadeUpRuns
from tests.shop import ACCEPT, REVIEWER, RIGHT, WRONG, git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def made_up(factory: Factory) -> Iterator[MadeUpRuns]:
    """Made-up runs in the factory's own ledger."""
    with open_database(load_settings()) as database:
        yield MadeUpRuns(database)


def kept(factory: Factory, kind: str) -> list[dict[str, Any]]:
    """The examples of a kind, as a trainer reads them: one JSON object per line."""
    files = sorted((factory.home / "objects" / "corpus" / kind).glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def check_messages(messages: list[dict[str, Any]]) -> None:
    """The chat format of trainers: system, user, then assistant and user or tools in turn, nothing empty, each call of a
    tool answered, and the assistant last."""
    roles = [message["role"] for message in messages]
    assert roles[:3] == ["system", "user", "assistant"]
    assert roles[-1] == "assistant"
    waiting: set[str] = set()
    for before, message in zip([None, *messages], messages, strict=False):
        assert message.keys() <= {"role", "content", "tool_calls", "tool_call_id"}
        assert message["content"].strip() or message.get("tool_calls")
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting
        assert before is None or before["role"] != message["role"]
        waiting = {call["id"] for call in message.get("tool_calls", ())}
        assert all(isinstance(json.loads(c["function"]["arguments"]), dict) for c in message.get("tool_calls", ()))


# --- the corpus -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_accepted_run_leaves_the_call_that_wrote_its_change(factory: Factory) -> None:
    write_ticket(factory.board, "shop-1")
    await factory.run("shop-1")
    (example,) = kept(factory, "chat")
    check_messages(example["messages"])
    asked = next(r for r in factory.model.requests if "Find the bug" in r.prompt)
    assert example["messages"][1]["content"] in asked.prompt, "the prompt is kept as it was asked"
    assert example["messages"][2]["content"] == f"The bug is in{RIGHT}"
    base = git(factory.repository, "rev-parse", "HEAD").strip()
    found = example["provenance"]
    assert (found["ticket"], found["attempt"], found["base_sha"], found["licence"]) == ("shop-1", 1, base, "unknown")
    assert found["evidence"]["fixed"] == 1
    assert found["model"]
    assert kept(factory, "preferences") == []


@pytest.mark.slow
async def test_a_change_that_was_sent_back_becomes_a_pair_with_the_accepted_one(factory: Factory) -> None:
    factory.model.rules = script(coder=(WRONG, WRONG, RIGHT))
    write_ticket(factory.board, "shop-1")
    assert (await factory.run("shop-1")).rounds == 2
    (pair,) = kept(factory, "preferences")
    assert [m["role"] for m in pair["prompt"]] == ["system", "user"]
    assert pair["form"] == "answer"
    assert "- discount" in pair["rejected"][0]["content"]
    assert "(100 - discount)" in pair["chosen"][0]["content"]
    check_messages([*pair["prompt"], *pair["chosen"]])
    check_messages([*pair["prompt"], *pair["rejected"]])
    assert len(kept(factory, "chat")) == 1


@pytest.mark.slow
async def test_work_with_tools_is_kept_whole_and_its_rounds_as_diffs(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    factory.forget()
    factory.model.rules = script(architect=PLAN, coder=(*CODER, *MENDED), judge=(REVISE, ACCEPT))
    write_ticket(factory.board, "shop-1")
    await factory.run("shop-1")
    (example,) = kept(factory, "chat")
    check_messages(example["messages"])
    assert example["messages"][-1]["tool_calls"][0]["function"]["name"] == "finish"
    assert {tool["function"]["name"] for tool in example["tools"]} >= {"edit_file", "finish"}
    (pair,) = kept(factory, "preferences")
    assert pair["form"] == "diff"
    assert "0 takes nothing off" in pair["chosen"][0]["content"]
    assert "0 takes nothing off" not in pair["rejected"][0]["content"]
    check_messages([*pair["prompt"], *pair["chosen"]])


@pytest.mark.slow
async def test_a_run_that_is_repeated_after_a_fault_leaves_one_example_though_its_answers_are_older(
    factory: Factory,
) -> None:
    factory.model.rules = script(reviewer=(Fault(kind="status", status=401), REVIEWER))
    write_ticket(factory.board, "shop-1")
    with pytest.raises(FactoryError):
        await factory.run("shop-1")
    assert kept(factory, "chat") == []
    factory.forget()
    await factory.run("shop-1")
    assert factory.calls().count("coder") == 1
    assert len(kept(factory, "chat")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("opted_out", ["LEARNING", "REPOSITORIES"])
async def test_nothing_is_kept_of_a_repository_that_opted_out(
    factory: Factory, monkeypatch: pytest.MonkeyPatch, opted_out: str
) -> None:
    from flows.ticket import work_ticket

    section = {"path": str(factory.repository), "corpus": opted_out != "REPOSITORIES"}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps({"shop": section}))
    monkeypatch.setenv("DARKFACTORY_LEARNING", json.dumps({"corpus": opted_out != "LEARNING"}))
    factory.forget()
    write_ticket(factory.board, "shop-1")
    assert (await work_ticket("shop-1", "shop")).decision == "ACCEPT"
    assert not (factory.home / "objects" / "corpus").exists()


@pytest.mark.slow
async def test_the_corpus_is_listed_counted_and_forgotten_by_repository(factory: Factory) -> None:
    write_ticket(factory.board, "shop-1")
    await factory.run("shop-1")
    objects = open_objects(load_settings())
    (entry,) = manifest(objects)
    repository = entry.repository
    assert holdings(objects) == [Holding(kind="chat", repository=repository, examples=1, size=entry.size)]
    assert forget(objects, "another") == 0
    assert forget(objects, repository) == 1
    assert manifest(objects) == []


# --- the level of a run -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_run_notes_what_it_is_like_and_says_so_on_a_sheet(factory: Factory, made_up: MadeUpRuns) -> None:
    write_ticket(factory.board, "shop-1")
    await factory.run("shop-1")
    sheet = (factory.home / "objects" / "shop-1" / "attempt-1" / "level.md").read_text()
    assert "works at the usual level" in sheet
    assert "feature of effort 1" in sheet
    runs: list[Any] = []
    made_up.feedback.calibrated(9_999, lambda found, *_: runs.extend(found) or {}, keep=False)
    (run,) = runs
    assert (run.traits.intent, run.traits.effort, run.traits.level, run.outcome) == ("feature", 1, "usual", "accepted")
    assert run.traits.confidence == START


@pytest.mark.slow
async def test_a_run_starts_its_coder_on_the_level_that_earlier_runs_recommend(
    factory: Factory, made_up: MadeUpRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.feedback import calibrate
    from tasks import services

    monkeypatch.setenv("DARKFACTORY_STRONG", json.dumps({"model": "openai/large", "url": factory.model.openai_url}))
    monkeypatch.setenv("DARKFACTORY_LEARNING", '{"route": true}')
    monkeypatch.setattr(services, "clock", lambda: made_up.at)
    factory.forget()
    made_up.add(30, 12, intent="feature", effort=1)
    made_up.add(30, 28, intent="feature", effort=1, level="strong")
    (route,) = (await calibrate()).routes
    assert route.level == "strong"
    factory.model.rules = script(coder=CODER)
    write_ticket(factory.board, "shop-1")
    assert (await factory.run("shop-1")).decision == "ACCEPT"
    seats = {(s.role, s.model) for s in services.ledger().usage_by_seat("shop-1")}
    assert ("coder", "large") in seats
    assert ("judge", "scripted") in seats
    sheet = (factory.home / "objects" / "shop-1" / "attempt-1" / "level.md").read_text()
    assert "strong level" in sheet
    assert "interval lies above" in sheet


# --- the daily calibration --------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a receiver of notifications was told."""
    bodies: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("DARKFACTORY_NOTIFY", json.dumps({"webhook": f"http://127.0.0.1:{server.server_port}/"}))
    yield bodies
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_calibration_leaves_its_artifact_and_tells_a_decline_once(
    factory: Factory, told: list[dict[str, Any]], made_up: MadeUpRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.feedback import calibrate
    from tasks import services

    monkeypatch.setattr(services, "clock", lambda: made_up.at)
    factory.forget()
    made_up.add(60, 57, days_ago=30)
    made_up.add(30, 12, days_ago=3)
    first = await calibrate()
    assert await calibrate() == first
    assert sorted(body["title"] for body in told) == ["intent 'bug' got worse", "model 'usual' got worse"]
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["calibration"])))
    assert any("retrain or replace" in str(each.data) for each in found)
