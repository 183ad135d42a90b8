"""`work_ticket` on tickets that no test can be red for: documentation, and tests of code that is right already."""

from __future__ import annotations

import json

import pytest

from infra.llm.scripted import Answer
from tests.flows.conftest import Factory
from tests.flows.test_capable_model import tool
from tests.shop import git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

EMPTY = "from shop.prices import cheapest\n\n\ndef test_an_empty_basket_has_no_lowest_price():\n    cheapest([])\n"
REAL = EMPTY.replace("    cheapest([])", "    assert cheapest([]) is None").replace("an_empty", "an_empty_or_full")
REAL += "    assert cheapest([2, 1]) == 1\n"
DONE = tool("finish", explanation="As the ticket asks.")


def plan(path: str, *, new: bool = False) -> str:
    unit = {"id": "u1", "title": "Do it", "files": [path]}
    return json.dumps({"summary": "As asked.", "effort": 2, "creates": [path] if new else [], "units": [unit]})


@pytest.fixture
def capable(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Factory:
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    factory.forget()
    return factory


def _says(factory: Factory, path: str, *coder: Answer, new: bool = False) -> None:
    factory.model.rules = script(architect=plan(path, new=new), coder=coder)


async def test_a_ticket_for_documentation_becomes_a_pull_request(capable: Factory) -> None:
    """T3 and T7: its tests stay green, and nobody is asked for a red one."""
    _says(capable, "README.md", tool("edit_file", path="README.md", old="# Shop", new="# Shop\n\nSums baskets."), DONE)
    write_ticket(capable.board, "docs-1", "Say in the README what the shop does.", title="Document what the shop does")

    outcome = await capable.run("docs-1")

    assert (outcome.decision, outcome.rounds) == ("ACCEPT", 1), outcome.reasons
    assert outcome.reasons == ("Only documents change, for which no test can be red; nothing that passed fails.",)
    assert "tester" not in capable.calls()
    assert "Sums baskets." in git(capable.remote(), "show", "agent/docs-1:README.md")
    page = capable.pull_request("docs-1")
    assert page is not None
    assert "Only documents change" in page.read_text()
    assert capable.leftovers() == []


async def test_a_ticket_for_documentation_brings_no_code_in(capable: Factory) -> None:
    """Its title is a stranger's: what needs no test is read from the diff."""
    code = tool("edit_file", path="shop/prices.py", old="return sum(prices)", new="return sum(prices) + 0")
    _says(capable, "README.md", code, DONE)
    write_ticket(capable.board, "docs-2", "Say in the README what the shop does.", title="Document what the shop does")

    outcome = await capable.run("docs-2")

    assert outcome.decision == "REJECT"
    assert any("No test fails before" in reason and "'shop/prices.py'" in reason for reason in outcome.reasons)
    assert capable.pull_request("docs-2") is None


@pytest.mark.slow
async def test_a_ticket_for_tests_becomes_a_pull_request_once_they_can_fail(capable: Factory) -> None:
    """The first test asserts nothing; the judge says so, and the next round goes on from it."""
    path = "tests/test_cheapest.py"
    first = (tool("write_file", path=path, content=EMPTY), DONE)
    second = (tool("read_file", path=path), tool("write_file", path=path, content=REAL), DONE)
    _says(capable, path, *first, *second, new=True)
    write_ticket(capable.board, "gap-1", "No test has an empty basket.", title="Add tests for cheapest")

    outcome = await capable.run("gap-1")

    assert (outcome.decision, outcome.rounds) == ("ACCEPT", 2), outcome.reasons
    assert "an_empty_or_full_basket" in outcome.reasons[0]
    assert outcome.evidence is not None
    assert (outcome.evidence.exemption, outcome.evidence.fixed) == ("tests", ())
    assert "tester" not in capable.calls()
    assert any("stay green whatever is edited" in request.prompt for request in capable.model.requests)
    assert git(capable.remote(), "show", f"agent/gap-1:{path}") == REAL
