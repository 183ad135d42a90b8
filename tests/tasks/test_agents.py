"""A whole agent as the coder of `work_ticket`: its change, its faults, its prompt, its costs. The agent is a shell command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from infra.agents import Report
from infra.agents.opening import open_agent
from infra.errors import BudgetExhausted, ConfigError, FactoryError, QuotaExhausted, RateLimited, Unreachable
from infra.settings import Settings
from tasks import services
from tasks.agents import blame, ending_of, prompt
from tasks.models import Brief, Feedback, Plan, Policy, Repository, TestChange, TestReport, Ticket, WorkUnit
from tests.flows.conftest import Factory, _prefect, factory  # noqa: F401  fixtures
from tests.flows.test_capable_model import PLAN
from tests.shop import ACCEPT, BODY, git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    # and a run that an agent's fault ends at once cuts off the results that its other roles are just writing
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]

MEND = r"sed -i 's|return sum(prices)|return sum(prices) * (100 - discount) / 100|' shop/prices.py"
LIMIT = "echo \"You've hit your usage limit\"; echo 'rate limit reached: try again in 2 hours'"

Hire = Callable[..., None]


@pytest.fixture
def hire(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Hire:  # noqa: F811  the fixture
    """Make a shell command the coder of the factory."""

    def hire(program: str, kind: str = "command", budgets: dict[str, Any] | None = None, **section: object) -> None:
        given = {"kind": kind, "program": program, "max_seconds": 60, **section}
        monkeypatch.setenv("DARKFACTORY_AGENTS", json.dumps({"hired": given}))
        monkeypatch.setenv("DARKFACTORY_ROLES", json.dumps({"coder": {"agent": "hired"}}))
        monkeypatch.setenv("DARKFACTORY_MODEL_TIER", "capable")
        monkeypatch.setenv("DARKFACTORY_BUDGETS", json.dumps(budgets or {}))
        factory.forget()
        factory.model.rules = script(architect=PLAN, judge=ACCEPT)
        write_ticket(factory.board, "shop-1")

    return hire


@pytest.mark.slow
async def test_an_agent_codes_and_the_factory_judges_its_diff(factory: Factory, hire: Hire) -> None:  # noqa: F811
    hire(f"cat > /tmp/prompt; grep -q 'Take the discount off' /tmp/prompt && {MEND}; echo 'The discount is taken off.'")
    outcome = await factory.run("shop-1")
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert not any("Your unit of it" in request.prompt for request in factory.model.requests), "the model codes nothing"
    assert "(100 - discount) / 100" in git(factory.remote(), "show", "agent/shop-1:shop/prices.py")
    given = [event.data for event in factory.history("shop-1").events if event.kind == "grant"]
    assert [grant["network"] for grant in given if grant["role"] == "coder"] == ["model"]
    assert factory.leftovers() == []
    assert list((factory.home / "run/agents/hired/sessions").iterdir()) == []


@pytest.mark.slow
async def test_a_session_is_counted_and_kept(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """OB3: one row in the ledger; the transcript stands beside the ticket's other papers, its secrets masked."""
    hire(f"echo sk-abcdefghijklmnopqrstuvwxyz; {MEND}", max_usd=0.5, budgets={"ticket_agents": 3, "ticket_usd": 2})
    await factory.run("shop-1")
    assert factory.history("shop-1").usage_by_role["coder"].seconds > 0
    used = {use.cap: use for use in services.budgets().usage()}
    assert (used["ticket_agents"].used, used["ticket_usd"].reserved) == (1, 0)
    papers = [name for name in services.objects().list("shop-1/transcripts/") if "/coder-" in name]
    assert len(papers) == 1
    kept = (services.objects().get(papers[0]) or b"").decode()
    assert "Take the discount off" in kept
    assert "sk-abcdefgh" not in kept


async def test_an_agent_that_did_nothing_is_no_success(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """Exit code 0 and an empty diff: the judge's rule says so, and the attempt is burnt."""
    hire("echo 'All is well.'")
    outcome = await factory.run("shop-1")
    assert outcome.decision == "REJECT"
    assert any("empty" in reason or "No test fails before" in reason for reason in outcome.reasons)


async def test_a_session_that_dies_at_once_and_leaves_nothing_burns_nothing(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """RB8: the tests that were laid for it, here the ticket's own example, are not its work."""
    hire("exit 1")
    write_ticket(factory.board, "shop-1", f"{BODY}\n```python\n>>> total([100.0], 10)\n90.0\n```\n")
    with pytest.raises(Unreachable):
        await factory.run("shop-1")
    assert factory.history("shop-1").attempts[-1].outcome == "infra_failed"


async def test_a_limit_burns_nothing_and_rests_the_agent_not_the_model(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """RB8: although the command ended with exit code 0; the next run does not start it again."""
    hire(f"echo start >> /tmp/starts; {LIMIT}")
    with pytest.raises(RateLimited) as raised:
        await factory.run("shop-1")
    assert raised.value.service == "provider:command"
    assert set(services.pauses().active()) == {"provider:command"}
    assert factory.history("shop-1").attempts[-1].outcome == "infra_failed"
    sessions = factory.history("shop-1").usage_by_role["coder"].seconds
    factory.forget()
    with pytest.raises(RateLimited):
        await factory.run("shop-1")
    assert factory.history("shop-1").usage_by_role["coder"].seconds == sessions
    assert factory.leftovers() == []


@pytest.mark.slow
async def test_a_session_that_was_cut_off_goes_on_where_it_was(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """WS3: what it had changed is in the folder, the next one is told so, and both together are the change."""
    half = "grep -q 'cut off' /tmp/prompt || { echo '# half' >> shop/prices.py; " + LIMIT + "; exit 1; }"
    hire(f"cat > /tmp/prompt; {half}; grep -q '# half' shop/prices.py && {MEND}; echo Done.")
    with pytest.raises(RateLimited):
        await factory.run("shop-1")
    assert len(factory.leftovers()) == 3, "the checkout, its private folder, and what git knows of it"
    services.pauses().succeed("provider:command", by_hand=True)
    factory.forget()
    outcome = await factory.run("shop-1")
    assert outcome.decision == "ACCEPT", outcome.reasons
    made = git(factory.remote(), "show", "agent/shop-1:shop/prices.py")
    assert "# half" in made
    assert "(100 - discount) / 100" in made
    assert factory.calls().count("architect") == 1
    assert factory.leftovers() == []


async def test_an_agent_that_cannot_be_started_is_a_setting_to_mend(factory: Factory, hire: Hire) -> None:  # noqa: F811
    hire("no-such-program --now", budgets={"ticket_agents": 1})
    with pytest.raises(ConfigError, match="no-such-program"):
        await factory.run("shop-1")
    assert [use.used for use in services.budgets().usage() if use.cap == "ticket_agents"] == [0]


async def test_money_is_set_aside_before_a_session(factory: Factory, hire: Hire) -> None:  # noqa: F811
    """RB11: a cap holds before the agent starts, and without a bound of its own it is not started at all."""
    hire(MEND, max_usd=3, budgets={"ticket_usd": 2}, usd_per_million_tokens=(0, 0, 0))
    with pytest.raises(BudgetExhausted):
        await factory.run("shop-1")
    hire(MEND, budgets={"ticket_usd": 2})
    with pytest.raises(ConfigError, match="max_usd"):
        await factory.run("shop-1")


REJECTED = {
    "type": "result",
    "subtype": "success",
    "is_error": True,
    "api_error_status": 401,
    "result": "Invalid API key",
}


@pytest.mark.parametrize(
    ("report", "worked", "ending"),
    [
        (Report(finished=True, events=({"type": "turn.completed"},)), True, "done"),
        (Report(finished=True, events=({"type": "turn.completed"},)), False, "unchanged"),
        (Report(finished=False, ran_out="turns"), True, "limit"),
        (Report(finished=False, ran_out="usd"), False, "limit"),
        (Report(finished=False, ran_out="output"), True, "limit"),
        (Report(finished=False, ran_out="time", seconds=60, tool_calls=3), True, "limit"),
        (Report(finished=False, exit_code=1, seconds=60, tool_calls=3), True, "invalid"),
        (Report(finished=False, exit_code=1, seconds=2, tool_calls=3), True, "invalid"),
        (Report(finished=False, exit_code=1, seconds=2), False, Unreachable),
        (Report(finished=False, ran_out="time", seconds=60), False, Unreachable),
        (Report(finished=False, exit_code=1, seconds=60, events=(REJECTED,)), False, FactoryError),
        (Report(finished=False, exit_code=1, seconds=60, output="Credit balance is too low"), False, QuotaExhausted),
        (Report(finished=False, exit_code=137, seconds=60), False, FactoryError),
        (Report(finished=True, exit_code=0, seconds=60, output="rate_limit = 5"), False, "unchanged"),
    ],
)
def test_whose_fault_an_end_was(
    report: Report, worked: bool, ending: str | type[FactoryError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """RB8: what the provider or the machine did is raised; what the agent did is the ticket's."""
    settings = Settings.model_validate({"home": tmp_path, "agents": {"hired": {"kind": "claude-code"}}})
    monkeypatch.setattr(services, "settings", lambda: settings)
    agent = open_agent(services.settings(), "hired")
    if isinstance(ending, str):
        assert ending_of(report, agent, worked=worked) == ending
    else:
        with pytest.raises(ending):
            ending_of(report, agent, worked=worked)


def test_a_reset_without_a_zone_is_in_that_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RB8: an agent prints the clock of the machine it runs on; read as UTC, a pause is hours too long or too short."""
    settings = Settings.model_validate({"home": tmp_path, "agents": {"hired": {"kind": "codex"}}})
    monkeypatch.setattr(services, "settings", lambda: settings)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        now = datetime.now(ZoneInfo("Asia/Tokyo"))
        said = f"You've hit your usage limit. Try again at {now + timedelta(hours=3):%I:%M %p}."
        fault = blame(
            Report(finished=False, exit_code=1, seconds=60, output=said), open_agent(settings, "hired"), worked=False
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert fault.reset_at is not None
    assert timedelta(hours=2, minutes=58) < fault.reset_at - now <= timedelta(hours=3)


def test_the_prompt_fences_the_ticket_and_names_what_is_red() -> None:
    """WS8: what the ticket says stands in the prefix, between marks it cannot know."""
    repository = Repository(name="r", mirror="", remote="", base_branch="main", base_sha="a")
    ticket = Ticket(key="T", title="t", body="b", state="")
    report = TestReport(command="t", exit_code=0)
    brief = Brief(
        ticket=ticket, repository=repository, policy=Policy(test="make check"), baseline=report, prefix="<<n1\nb\nn1>>"
    )
    unit = WorkUnit(id="u1", title="Take it off")
    tests = (TestChange(tester=1, files={}, red=("tests/a.py::test_b",)),)
    told = prompt(brief, Plan(summary="s", effort=1, units=(unit,)), unit, tests, Feedback(must_fix=("Say why.",)))
    assert told.index("<<n1\nb\nn1>>") < told.index("Take it off")
    assert "- Say why." in told
    assert "tests/a.py::test_b" in told
    assert "`make check`" in told
