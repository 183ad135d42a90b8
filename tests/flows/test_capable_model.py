"""`work_ticket` with a capable model: it plans in full, codes with tools, and its judge's opinion is heard."""

from __future__ import annotations

import json

import pytest

from infra.llm import ToolCall
from infra.llm.scripted import Answer
from tests.flows.conftest import Factory
from tests.shop import ACCEPT, git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

PLAN = json.dumps(
    {
        "summary": "total() never uses its discount.",
        "effort": 2,
        "units": [{"id": "u1", "title": "Take the discount off", "files": ["shop/prices.py"]}],
    }
)
REVISE = '{"decision": "REVISE", "reasons": ["Cents are lost."], "must_fix": ["Say what a discount of 0 does."]}'


def tool(name: str, **arguments: object) -> Answer:
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


MENDED = (
    tool("edit_file", path="shop/prices.py", old="in percent.", new="in percent; 0 takes nothing off."),
    tool("finish", explanation="The description says it."),
)
CODER = (
    tool("read_file", path="shop/prices.py"),
    tool(
        "edit_file", path="shop/prices.py", old="return sum(prices)", new="return sum(prices) * (100 - discount) / 100"
    ),
    tool("run_tests"),
    tool("finish", explanation="The discount was never taken off."),
)


@pytest.mark.slow
async def test_it_codes_with_tools_and_its_judge_can_ask_for_another_round(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    factory.forget()
    factory.model.rules = script(architect=PLAN, coder=(*CODER, *MENDED), judge=(REVISE, ACCEPT))
    write_ticket(factory.board, "shop-1")

    outcome = await factory.run("shop-1")

    assert (outcome.decision, outcome.rounds) == ("ACCEPT", 2), outcome.reasons
    assert factory.calls().count("coder") == 6
    assert factory.calls().count("judge") == 2
    second = [
        r for r in factory.model.requests if "Say what a discount of 0 does." in r.prompt and "Your unit" in r.prompt
    ]
    assert second, "the judge's words reach the coder of the next round"
    published = git(factory.remote(), "show", "agent/shop-1:shop/prices.py")
    assert "(100 - discount) / 100" in published, "the next round goes on from the best change"
    assert "0 takes nothing off" in published
    assert factory.leftovers() == []
