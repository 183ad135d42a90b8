"""Who works on a small and on a large ticket, and what the shared prompt prefix saves: `python -m benchmarks.crew`.

Runs both tickets with the model that DARKFACTORY_MODEL names; without one a scripted model answers, so that roles, calls and
shares are those of the factory and the minds are not. The table is printed from the ledger and the kept transcripts.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from infra.llm import Frozen, ToolCall, Usage
from infra.llm.scripted import Answer, Rule, ScriptedModel, shared_characters
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.ledger import SeatUsage

SMALL, LARGE = "small", "large"

FILES = {
    "shop/__init__.py": "",
    "shop/prices.py": '''"""Prices of a basket."""


def total(prices, discount=0):
    """What a basket costs after a discount in percent."""
    return sum(prices)
''',
    "shop/stock.py": '''"""What is on the shelf."""


def left(stock, sold):
    """How many pieces are left, never less than none."""
    return stock - sold
''',
    "shop/labels.py": '''"""Labels on the shelf."""


def label(name, price):
    """Name and price with two decimals: `Tea 1.50`."""
    return f"{name} {price}"
''',
    "tests/test_shop.py": """from shop.labels import label
from shop.prices import total
from shop.stock import left


def test_the_shop_opens():
    assert (total([1, 2]), left(3, 1), label("Tea", 1.25)) == (3, 2, "Tea 1.25")
""",
}

TICKETS = {
    SMALL: (
        "total ignores the discount",
        "`total` ignores its discount: a basket of 200 with a discount of 10 should cost 180, and it costs 200.",
    ),
    LARGE: (
        "The shop counts wrong in three places",
        "`total` ignores its discount: 200 with a discount of 10 should cost 180. `left` goes below none: 1 in stock and 3 sold "
        "should leave 0. `label` drops decimals: Tea for 1.5 should read `Tea 1.50`.",
    ),
}

_UNITS = [
    {"id": "prices", "title": "Take the discount off", "files": ["shop/prices.py"], "symbols": ["total"]},
    {"id": "stock", "title": "Leave none at least", "files": ["shop/stock.py"], "symbols": ["left"]},
    {"id": "labels", "title": "Two decimals", "files": ["shop/labels.py"], "symbols": ["label"]},
]
_EDITS = (
    ("shop/prices.py", "return sum(prices)", "return sum(prices) * (100 - discount) / 100"),
    ("shop/stock.py", "return stock - sold", "return max(stock - sold, 0)"),
    ("shop/labels.py", "{price}", "{price:.2f}"),
)
_TESTS = (
    "from shop.prices import total\n\ndef test_the_discount_is_taken_off():\n    assert total([200], 10) == 180",
    "from shop.stock import left\n\ndef test_no_less_than_none():\n    assert left(1, 3) == 0",
    "from shop.labels import label\n\ndef test_two_decimals():\n    assert label('Tea', 1.5) == 'Tea 1.50'",
)
THREATS = json.dumps({
    "threats": [{"category": "Tampering", "vector": "the price list", "threat": "a price below nothing", "severity": "low"}],
    "vectors": [{"source": "the price list", "sink": "the invoice", "guard": ""}],
})  # fmt: skip
WORDS = json.dumps({
    "title": "Count discount, stock and decimals right", "changelog": "Discounts are taken off.",
    "summary": "total() left its discount out, left() went below none and label() dropped decimals.",
})  # fmt: skip


def plan(effort: int, units: Sequence[Mapping[str, object]]) -> str:
    """A capable architect's answer."""
    return json.dumps({
        "summary": "The shop counts wrong.", "effort": effort, "risk": "low", "acceptance": ["10 % off 200 is 180"],
        "edge_cases": ["more sold than there was"], "file_layout": [each["files"][0] for each in units],  # type: ignore[index]
        "units": units,
    })  # fmt: skip


def tool(name: str, **arguments: object) -> Answer:
    """An answer that calls one tool."""
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


def edit(path: str, old: str, new: str) -> Answer:
    """A coder's first step; `FINISHED` is its second."""
    return tool("edit_file", path=path, old=old, new=new)


FINISHED = tool("finish", explanation="It says what it should.")


def story(
    key: str, effort: int, units: Sequence[Mapping[str, object]] = _UNITS, **instead: tuple[str | Answer, ...]
) -> list[Rule]:
    """A capable crew's answers for one ticket; `instead` replaces those of a role."""
    answers: dict[str, tuple[str, tuple[str | Answer, ...]]] = {
        "judge": ("You are the judge", ('{"decision": "ACCEPT", "reasons": ["It does."], "must_fix": []}',)),
        "reviewer": ("You are the reviewer", ('{"summary": "Three small corrections.", "findings": []}',)),
        "second_look": ("security auditor [12]. Look at the change", ('{"findings": []}',)),
        "auditor": ("security auditor [12]. Look at this plan", (THREATS,)),
        "scribe": ("You are the scribe", (WORDS,)),
        "architect": ("You are the architect", (plan(effort, units),)),
        **{f"tester_{n}": (f"You are tester {n}", (f"```python\n{text}\n```",)) for n, text in enumerate(_TESTS, 1)},
        **{f"coded_{n}": (f'"id":"u{n}".*edited ', (FINISHED,)) for n, _ in enumerate(_EDITS, 1)},
        **{f"coder_{n}": (f'"id":"u{n}"', (edit(*words),)) for n, words in enumerate(_EDITS, 1)},
    }  # fmt: skip
    return [_rule(key, words, instead.get(role, given)) for role, (words, given) in answers.items()]


def _rule(key: str, words: str, answers: tuple[str | Answer, ...]) -> Rule:
    """For one ticket and the instruction that ends a prompt."""
    return Rule(match=rf"Ticket {key}:\n.*\n---\n(?!.*\n---\n).*(?:{words})", answers=answers, regex=True)


class Measured(Frozen):
    """One ticket: how it ended, who was asked, and how many characters the first prompts of all roles have in common."""

    ticket: str
    decision: str
    seconds: float
    usage: Usage
    by_role: dict[str, Usage]
    shared_characters: int


def shared_prefix(objects: Path, ticket: str) -> int:
    """Characters that the first requests of all members of the crew begin with, from the kept transcripts."""
    found = [json.loads(path.read_text()) for path in sorted((objects / ticket / "transcripts").glob("*-1-*.json"))]
    prompts = ["\n".join(m["content"] for m in each["request"]["messages"][:2]) for each in found]
    return min((shared_characters(prompts[0], other) for other in prompts), default=0)


def by_role(seats: Sequence[SeatUsage]) -> dict[str, Usage]:
    """The sums of each role, in the order of first use."""
    found: dict[str, Usage] = {}
    for seat in seats:
        found[seat.role] = found.get(seat.role, Usage()) + seat.usage
    return found


async def measure(key: str, repository: Path) -> Measured:
    """Work one ticket of the folder board."""
    from flows.ticket import work_ticket
    from tasks import services

    began = time.monotonic()
    outcome = await work_ticket(key, str(repository))
    seats = await asyncio.to_thread(services.ledger().usage_by_seat, key)
    shared = shared_prefix(services.settings().root / "objects", key)
    return Measured(ticket=key, decision=outcome.decision, seconds=time.monotonic() - began, usage=outcome.usage,
                    by_role=by_role(seats), shared_characters=shared)  # fmt: skip


def table(measured: Sequence[Measured]) -> str:
    """Markdown: a line for each ticket and, below it, each of its roles that asked a model."""
    lines = ["| ticket | role | calls | prompt tokens | cached | written | USD | shared prefix |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for each in measured:
        ended = f"{each.decision} in {each.seconds:.0f} s"
        lines.append(f"| {each.ticket} | all: {ended} {_figures(each.usage)} {each.shared_characters} characters |")
        lines += [f"| {each.ticket} | {role} {_figures(usage)} |" for role, usage in each.by_role.items()]
    return "\n".join(lines)


def _figures(usage: Usage) -> str:
    share = usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else 0.0
    return f"| {usage.calls} | {usage.prompt_tokens} | {share:.0%} | {usage.completion_tokens} | {usage.cost_usd:.4f} |"


def prepare(home: Path) -> Path:
    """Board and repository of the measurement in `home`; returns the repository."""
    board, place = home / "board", home / "shop"
    for path, text in FILES.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    who = {f"GIT_{r}_{w}": "shop@shop.invalid" for r in ("AUTHOR", "COMMITTER") for w in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, **who}
    for arguments in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "-m", "Open"]):
        subprocess.run(["git", *arguments], cwd=place, env=environment, check=True)
    board.mkdir(parents=True, exist_ok=True)
    for key, (title, body) in TICKETS.items():
        (board / f"{key}.md").write_text(f"---\ntitle: {title}\nstate: ready\n---\n{body}\n")
    return place


def main() -> None:
    with ExitStack() as stack:
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="darkfactory-crew-", ignore_cleanup_errors=True))
        )
        os.environ["DARKFACTORY_HOME"] = str(home)
        os.environ.pop("DARKFACTORY_BOARD", None)
        scripted = "DARKFACTORY_MODEL" not in os.environ
        if scripted:
            model = stack.enter_context(ScriptedModel([*story(SMALL, 1, _UNITS[:1]), *story(LARGE, 5)]))
            given = {"MODEL": "openai/scripted", "MODEL_URL": model.openai_url, "MODEL_TIER": "capable"}
            os.environ.update({f"DARKFACTORY_{name}": value for name, value in given.items()})
        measured = _measure_all(prepare(home))
    print(
        "No model was configured: a scripted one answered.\n"
        if scripted
        else f"Model {os.environ['DARKFACTORY_MODEL']}.\n"
    )
    print(table(measured))


def _measure_all(repository: Path) -> list[Measured]:
    from deployments.engine import choose_engine
    from infra.postgres import stop_postgres

    settings = load_settings()
    engine = choose_engine(settings)
    engine.start()
    try:
        engine.wait()
        return asyncio.run(_both(repository))
    finally:
        engine.stop()
        stop_postgres(settings.root)


async def _both(repository: Path) -> list[Measured]:
    return [await measure(key, repository) for key in TICKETS]


if __name__ == "__main__":
    main()
