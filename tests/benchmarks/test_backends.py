"""The comparison of backends: what can run, what a row says, and one ticket through the factory with a command as coder."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.backends import ONE_SHOT, run_backend, sections, table
from benchmarks.tickets import load_tickets
from infra.llm.scripted import on
from tests.flows.conftest import Factory, _prefect, factory  # noqa: F401  fixtures

PROGRAMS = {"command": "true", "mini-swe-agent": "/mini", "codex": "/codex", "claude-code": "/claude"}
MEND = "```bash\nsed -i 's/difference <= 7/difference < 7/' timespan/relative.py\n```"


def test_what_is_not_installed_or_has_no_endpoint_is_left_out() -> None:
    found = sections({"": "http://e/v1", "codex": "http://r/v1"}, "m", PROGRAMS)
    assert list(found) == ["built-in", "command", "mini-swe-agent", "codex"]
    assert (found["mini-swe-agent"]["url"], found["codex"]["url"]) == ("http://e/v1", "http://r/v1")


def test_the_table_has_a_line_for_each_backend() -> None:
    row = {"agent": "codex", "ticket": "t", "solved": True, "seconds": 9.6, "calls": 2, "prompt_tokens": 100,
           "completion_tokens": 5, "cost_usd": 0.01, "ending": "ACCEPT in round 1"}  # fmt: skip
    assert table([row]).splitlines()[2] == "| codex | t | yes | 10 | 2 | 105 | 0.0100 | ACCEPT in round 1 |"


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
async def test_backends_are_judged_by_the_same_hidden_tests(
    factory: Factory,  # noqa: F811  the fixture
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The command mends the bug; the built-in coder gets an answer without code."""
    for name in ("AGENTS", "ROLES"):
        monkeypatch.setenv(f"DARKFACTORY_{name}", "{}")
    monkeypatch.setenv("DARKFACTORY_BOARD", str(factory.board))
    monkeypatch.setenv("DARKFACTORY_MAX_ROUNDS", "1")
    factory.model.rules = [on("one bash block", MEND), on("", "I do not know.")]
    ticket = load_tickets(("timespan-04",))[0]
    command = {"kind": "command", "program": f"python3 -c '{ONE_SHOT}'", "url": factory.model.openai_url, "model": "m"}
    rows = [
        await run_backend("command", command, ticket, tmp_path / "command"),
        await run_backend("built-in", {}, ticket, tmp_path / "built-in"),
    ]
    assert rows[0]["solved"] is True, rows
    assert rows[1]["agent"] == "built-in"
    assert rows[1]["calls"] >= 1
    assert len(table(rows).splitlines()) == 4
