"""Housekeeping as a whole: a repository with real faults, tickets on the board, an empty queue, the command line."""

from __future__ import annotations

import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from deployments.__main__ import main
from deployments.definitions import CONTROL, apply, control_table, ensure_pool
from infra.chores import CHORES
from infra.settings import load_settings
from tests.flows.conftest import Factory
from tests.flows.test_dispatch import Night, night
from tests.shop import FILES, git

__all__ = ["night"]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
FAULTS = {
    "shop/prices.py": FILES["shop/prices.py"]
    + "\n\ndef _gone(x):\n    # TODO: forget this one day\n    return undefined\n",
    "tests/test_more.py": "from shop.prices import total\n\n\ndef test_discount():\n    assert total([200], 10) == 180\n",
}
PROVEN = """{"bug": "total() ignores its discount."}
```python
from shop.prices import total

def test_a_discount_counts():
    assert total([100], 50) == 50
```"""


@pytest.fixture
def shop(night: Night, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """A factory whose repository has faults, with housekeeping on."""
    factory = night.factory
    commit(factory, FAULTS)
    turn_on(factory, monkeypatch)
    return factory


def commit(factory: Factory, files: dict[str, str]) -> None:
    for path, text in files.items():
        (factory.repository / path).write_text(text)
    git(factory.repository, "add", "--all")
    git(factory.repository, "commit", "--quiet", "--message", "more")


def turn_on(factory: Factory, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setenv("DARKFACTORY_HOUSEKEEPING", json.dumps({"enabled": True, **changes}))
    factory.forget()


def titles(factory: Factory) -> list[str]:
    lines = [path.read_text().splitlines() for path in factory.board.glob("*.md")]
    return sorted(
        line.removeprefix("title: ").strip("'\"") for each in lines for line in each if line.startswith("title: ")
    )


async def test_the_bug_hunter_makes_tickets_of_what_tools_prove_and_asks_no_small_model(shop: Factory) -> None:
    """W1"""
    from flows.backlog import find_work

    (swept,) = await find_work("bug-hunter")
    assert (swept.found, swept.made) == (2, 2)
    failing, undefined = titles(shop)[1], titles(shop)[0]
    assert failing == "Test fails on main: tests/test_more.py::test_discount"
    assert undefined.startswith("Likely bug in shop/prices.py, _gone: Undefined name")
    assert any("the model is small" in note for note in swept.notes)
    assert shop.calls() == []
    assert shop.leftovers() == []
    (again,) = await find_work("bug-hunter", "shop")
    assert (again.known, again.made) == (2, 0)


@pytest.mark.slow
async def test_a_capable_model_may_suspect_a_bug_and_only_a_red_test_makes_a_ticket(
    shop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W1: a guess without a failing test, with a test that passes, or with one that uses the code wrongly makes nothing."""
    from flows.backlog import find_work
    from infra.llm.scripted import Rule

    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    turn_on(shop, monkeypatch, chores={"bug-hunter": {"max_per_day": 9}}, max_tickets_per_day=9)
    commit(shop, {"shop/more.py": "".join(f"\n\ndef f{n}(x):\n    if x:\n        x += 1\n    y = x\n    return y\n" for n in range(3))})  # fmt: skip
    passing = '{"bug": "b"}\n```python\nfrom shop.more import f0\n\ndef test_f():\n    assert f0(0) == 0\n```'
    wrong = '{"bug": "b"}\n```python\nfrom shop.more import f1\n\ndef test_f():\n    f1(1, 2, 3)\n```'
    shop.model.rules = [
        Rule(match="function f0", answers=(passing,)),
        Rule(match="function f1", answers=(wrong,)),
        Rule(match="function f2", answers=('{"bug": "it is slow"}',)),
        Rule(match="function total", answers=(PROVEN,)),
        Rule(match="", answers=('{"bug": ""}',)),
    ]
    (first,) = await find_work("bug-hunter")
    assert len(shop.model.requests) == 3
    assert not any("proven" in title for title in first.titles)
    (second,) = await find_work("bug-hunter")
    assert second.titles == ("Bug in total of shop/prices.py, proven by a test",)
    asked = len(shop.model.requests)
    (ticket,) = [p.read_text() for p in shop.board.glob("*proven*.md")]
    assert "assert total([100], 50) == 50" in ticket
    (third,) = await find_work("bug-hunter")
    assert (third.made, len(shop.model.requests)) == (0, asked), "what was asked about is not asked about again"
    assert shop.leftovers() == []


async def test_a_repository_that_cannot_be_looked_at_is_said_and_does_not_stop_the_others(
    shop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.backlog import find_work

    both = {"gone": {"path": str(shop.home / "nowhere")}, "shop": {"path": str(shop.repository)}}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(both))
    shop.forget()
    gone, good = await find_work("technical-debt")
    assert "not looked at" in gone.notes[0]
    assert good.made == 2


async def test_refilling_stops_at_the_days_cap(shop: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.backlog import refill

    turn_on(shop, monkeypatch, max_tickets_per_day=2)
    swept = await refill()
    assert [each.chore for each in swept] == ["bug-hunter"]
    assert len(titles(shop)) == 2
    assert await refill() == ()


async def test_an_empty_queue_starts_the_generators_at_once_and_only_once_in_a_while(
    night: Night, shop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W1: when nothing waits and a slot is free; not while the queue is full, nor when the cap is used up."""
    await night.join(slots=1)
    async with get_client() as client:
        await ensure_pool(client, CONTROL, 2)
        for definition in control_table(load_settings()):
            if definition.name == "refill":
                await apply(client, definition, str(shop.home))
    before = await refills()
    assert (await night.tick()).refilling is True
    assert (await night.tick()).refilling is False
    night.clock.move(seconds=1801)
    assert (await night.tick()).refilling is True
    assert await refills() == before + 2
    night.clock.move(seconds=1801)
    turn_on(shop, monkeypatch, max_tickets_per_day=0)
    assert (await night.tick()).refilling is False
    turn_on(shop, monkeypatch)
    (shop.board / "T-1.md").write_text("---\ntitle: a ticket\nstate: todo\n---\nwork\n")
    assert (await night.tick()).refilling is False


async def refills() -> int:
    async with get_client() as client:
        named = DeploymentFilter(name=DeploymentFilterName(any_=["refill"]))
        return len(await client.read_flow_runs(deployment_filter=named, limit=200))


async def test_while_it_is_off_nothing_is_scheduled_started_or_made(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.backlog import find_work

    commit(night.factory, FAULTS)
    await night.join(slots=1)
    names = {definition.name for definition in control_table(load_settings())}
    assert not names & {*CHORES, "refill"}
    assert (await night.tick()).refilling is False
    (swept,) = await find_work("bug-hunter")
    assert "housekeeping is off" in swept.notes[0]
    (dry,) = await find_work("technical-debt", dry_run=True)
    assert (len(dry.titles), titles(night.factory)) == (2, [])


def test_every_chore_is_scheduled_as_the_file_says(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_on(night.factory, monkeypatch, chores={"simplify": {"cron": None}, "bug-hunter": {"cron": "0 3 * * *"}})
    crons = {d.name: d.cron for d in control_table(load_settings()) if d.name in CHORES}
    assert crons == {name: chore.cron for name, chore in CHORES.items()} | {"simplify": None, "bug-hunter": "0 3 * * *"}


def test_the_command_runs_a_chore_here_and_shows_what_it_did(
    shop: Factory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], prefect_url: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    assert main(["housekeeping", "run", "technical-debt", "--repo", "shop", "--dry-run", "--json"]) == 0
    (dry,) = json.loads(capfd.readouterr().out)["swept"]
    assert (len(dry["titles"]), dry["dry_run"], titles(shop)) == (2, True, [])
    assert main(["housekeeping", "run", "technical-debt"]) == 0
    assert "made: Nothing uses _gone" in capfd.readouterr().out
    assert main(["housekeeping", "list", "--json"]) == 0
    overview = json.loads(capfd.readouterr().out)
    debt = next(chore for chore in overview["chores"] if chore["name"] == "technical-debt")
    assert (overview["today"], debt["today"], debt["runs"][0]["counts"]["made"]) == (2, 2, 2)
    assert main(["housekeeping", "list"]) == 0
    assert "2 of 5 tickets today" in capfd.readouterr().out
    assert main(["housekeeping", "run", "bug-huntr"]) == 2
    assert "bug-hunter" in capfd.readouterr().err
    monkeypatch.setenv("DARKFACTORY_HOUSEKEEPING", "{}")
    assert main(["housekeeping", "run", "technical-debt"]) == 2
    assert "housekeeping is off" in capfd.readouterr().err
