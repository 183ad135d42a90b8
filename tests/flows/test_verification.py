"""`work_ticket` with models that want people to change something outside of the repository (T14), and with grants (A4)."""

from __future__ import annotations

import json

import pytest

from infra.llm import ToolCall
from infra.llm.scripted import Answer, Rule
from tests.flows.conftest import Factory
from tests.shop import ACCEPT, make_repository, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

PLAN = json.dumps(
    {"summary": "total() never uses its discount.", "effort": 2, "units": [{"id": "u1", "title": "Discount", "files": ["shop/prices.py"]}]}
)  # fmt: skip
CLAIM = "You must set the environment variable SHOP_DISCOUNT in production."
REVIEW = json.dumps(
    {"summary": "It takes the discount off.", "findings": [
        {"severity": "low", "path": "shop/prices.py", "line": 6, "message": CLAIM},
        {"severity": "low", "path": "shop/prices.py", "line": 6, "message": "Say that it is percent."},
    ]}
)  # fmt: skip


def tool(name: str, **arguments: object) -> Answer:
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


EDIT = tool(
    "edit_file", path="shop/prices.py", old="return sum(prices)", new="return sum(prices) * (100 - discount) / 100"
)


@pytest.fixture
def capable(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Factory:
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
    factory.forget()
    write_ticket(factory.board, "shop-1")
    return factory


def sheets(factory: Factory, kind: str) -> str:
    found = sorted((factory.home / "objects" / "shop-1" / "attempt-1").glob(f"{kind}*.md"))
    return "\n".join(path.read_text() for path in found)


@pytest.mark.slow
async def test_a_claim_without_evidence_reaches_neither_people_nor_the_pull_request(capable: Factory) -> None:
    """T14: refused in a question, in the coder's words and in a finding; shown on the sheets. A4: the grants are shown."""
    capable.model.rules = script(
        architect=PLAN,
        coder=(
            tool("ask_human", question=CLAIM), EDIT,
            tool("finish", explanation=f"The discount was ignored. {CLAIM}",
                 claims=[{"what": "Rotate the API key.", "evidence": ["shop/prices.py:1"]}]),
        ),
        reviewer=REVIEW, judge=ACCEPT,
    )  # fmt: skip

    outcome = await capable.run("shop-1")

    assert outcome.decision == "ACCEPT", outcome.reasons
    told = [r for r in capable.model.requests if "Name the lines of the repository that show it" in r.prompt]
    assert told, "the coder hears why it was refused"
    pull_request = capable.pull_request("shop-1")
    assert pull_request is not None
    text = pull_request.read_text()
    assert "The discount was ignored." in text
    assert "Say that it is percent." in text
    assert "SHOP" not in text
    assert "Rotate" not in text
    assert sheets(capable, "claims-coder").count("unverified claim (refused)") == 3
    assert sheets(capable, "claims-reviewer").count("unverified claim (refused)") == 1
    assert "| coder-" in sheets(capable, "grants")
    assert capable.leftovers() == []


@pytest.mark.slow
async def test_a_claim_with_evidence_is_put_to_the_strong_model(
    capable: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T14: what it confirms is passed on, what it denies is not."""
    url = capable.model.openai_url
    strong = {"model": "openai/strong", "url": url}
    monkeypatch.setenv("DARKFACTORY_STRONG", json.dumps(strong))
    capable.forget()
    read = (
        "import os\n\n\ndef total(prices, discount=int(os.environ.get('SHOP_DISCOUNT', 0))):\n    return sum(prices)\n"
    )
    files = {"shop/__init__.py": "", "shop/prices.py": read,
             "tests/test_prices.py": "from shop.prices import total\n\n\ndef test_sum():\n    assert total([1]) == 1\n"}  # fmt: skip
    capable.repository = make_repository(capable.home.parent / "reads", files)
    rules = script(
        architect=PLAN,
        coder=(EDIT, tool("finish", explanation=f"It was ignored. {CLAIM} It is read in shop/prices.py:4. "
                          "Please rotate the API key `SHOP_DISCOUNT`, too.")),
        judge=ACCEPT,
    )  # fmt: skip
    yes, no = '{"needed": true, "reason": "It is read there."}', '{"needed": false, "reason": "It is no key."}'
    capable.model.rules = [Rule(match="You are the verifier", answers=(yes, no)), *rules]

    outcome = await capable.run("shop-1")

    assert outcome.decision == "ACCEPT", outcome.reasons
    asked = [r for r in capable.model.requests if "You are the verifier" in r.prompt]
    assert len(asked) == 2
    assert {r.body["model"] for r in asked} == {"strong"}
    assert "shop/prices.py:4" in asked[0].prompt
    pull_request = capable.pull_request("shop-1")
    assert pull_request is not None
    assert "environment variable SHOP" in pull_request.read_text()
    assert "rotate" not in pull_request.read_text()
    assert "**confirmed**" in sheets(capable, "claims-coder")


async def test_a_question_with_evidence_that_nobody_could_confirm_is_asked_and_says_so(capable: Factory) -> None:
    """T14."""
    from infra.errors import NeedsHuman

    question = "Add `discount` to the repository secrets? shop/prices.py:4 uses it."
    capable.model.rules = script(architect=PLAN, coder=tool("ask_human", question=question))
    with pytest.raises(NeedsHuman) as raised:
        await capable.run("shop-1")
    assert raised.value.question.startswith(question)
    assert "Unverified claim: shop/prices.py:4 may show it" in raised.value.question
