"""Kill -9 anywhere and run again: the same pull request, nothing paid twice, nothing left behind (FM1)."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import Task

from infra.llm.scripted import Answer, Rule
from tests.faults.conftest import MakeShop, Shop, wait_until
from tests.flows.test_capable_model import PLAN
from tests.shop import ACCEPT, ARCHITECT, RIGHT, TESTS, git, left_behind, script

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SLOW = 0.5
ONE_ROUND = ("architect", "auditor", "coder", "judge", "reviewer", "tester")

Moment = Callable[[Shop], bool]


def asked(role: str, times: int = 1) -> Moment:
    """The model was asked by this role and has not answered yet: its call is in flight."""
    return lambda shop: shop.calls().count(role) >= times


def in_evidence(shop: Shop) -> bool:
    """The repository's tests are running on the candidate."""
    return any(shop.home.glob("worktrees/shop-1/suite-*"))


def pushed(shop: Shop) -> bool:
    """The branch is on the remote; the pull request's file may not be there yet."""
    return any(shop.home.glob("forge/*/repo.git/refs/heads/agent/shop-1"))


POINTS: tuple[tuple[Moment, set[str]], ...] = (
    (asked("architect"), {"architect"}),
    (asked("tester"), {"auditor", "coder", "tester"}),
    (in_evidence, set()),
    (asked("judge"), {"judge"}),
    (pushed, set()),
)
"""When to kill, and whose calls may be in flight then."""


def slowly() -> list[Rule]:
    """Right answers that leave time to be killed in."""
    slow = {"architect": ARCHITECT, "coder": RIGHT, "tester": TESTS, "judge": ACCEPT}
    return script(**{role: Answer(text=text, delay_seconds=SLOW) for role, text in slow.items()})


def killed_at(shop: Shop, moment: Moment) -> None:
    process = shop.start()
    wait_until(lambda: moment(shop) or process.poll() is not None, 120)
    assert process.poll() is None, "the run ended before the moment to kill it came"
    shop.kill(process)


def made_by(shop: Shop, lost: set[str], act: Callable[[], None]) -> set[str]:
    """The roles that asked while `act` ran. Each asks once, and again only when its answer was lost to a kill."""
    before = Counter(shop.calls())
    act()
    made = Counter(shop.calls()) - before
    assert max(made.values(), default=0) <= 1
    assert {role for role in made if before[role]} <= lost, "a finished call was made again"
    return set(made)


def measured(text: str) -> str:
    """A pull request without places and times: they differ between homes and runs."""
    kept = (
        line for line in text.splitlines() if not line.startswith(("opened:", "updated:", "| openai", "| scripted"))
    )
    return re.sub(r"file://\S+", "file", "\n".join(kept))


@pytest.mark.faults
def test_a_run_killed_at_every_turn_ends_as_one_that_was_left_alone(make_shop: MakeShop) -> None:
    shop = make_shop("killed")
    shop.serve(slowly())
    lost: set[str] = set()
    for moment, in_flight in POINTS:
        made = made_by(shop, lost, lambda moment=moment: killed_at(shop, moment))
        lost = (lost - made) | (made & in_flight)
    last = shop.start()
    made_by(shop, lost, lambda: wait_until(lambda: last.poll() is not None, 120))
    ended = shop.end_of(last)
    assert ended.code == 0, ended.stderr
    assert set(shop.calls()) == set(ONE_ROUND)
    assert ended.answer["usage"]["calls"] == len(ONE_ROUND)
    assert "state: in review" in (shop.board / "shop-1.md").read_text()
    wait_until(lambda: not left_behind(shop.home))

    calm = make_shop("calm")
    calm.serve(slowly())
    assert calm.end_of(calm.start()).code == 0
    assert sorted(calm.calls()) == sorted(ONE_ROUND)
    assert {n: measured(t) for n, t in shop.published().items()} == {
        n: measured(t) for n, t in calm.published().items()
    }
    assert _heads(shop.home) == _heads(calm.home)


STEPS = (
    "take_in", "write_brief", "make_plan", "choose_level", "audit", "write_tests", "write_code", "receive", "collect",
    "measure", "review", "judge", "cost_so_far", "leave_crew", "archive", "write_up", "publish", "keep_examples",
    "remember", "close",
)  # fmt: skip
"""The steps of a small ticket's run, in their order."""
OTHER_STEPS = {"audit_diff", "find_words", "pack", "reject", "turn_down"}
"""Those of larger, built or rejected ones."""
SIDE_BY_SIDE = {"audit": "auditor", "write_tests": "tester", "write_code": "coder"}


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_run_killed_after_each_of_its_steps_repeats_none_that_had_ended(make_shop: MakeShop) -> None:
    """FM1: at every boundary of today's flow, which this test knows: a new step belongs into `STEPS`."""
    import flows.ticket

    tasks = {name for name, step in vars(flows.ticket).items() if isinstance(step, Task)}
    assert tasks == {*STEPS, *OTHER_STEPS}
    shop = make_shop("killed")
    shop.serve(slowly())
    for step in STEPS:
        asked_before = Counter(shop.calls())
        process = shop.start_until(step)
        ended = shop.end_of(process)
        assert ended.code == -signal.SIGKILL, (step, ended)
        shop.kill(process)
        asked_again = {role for role in Counter(shop.calls()) - asked_before if asked_before[role]}
        assert asked_again <= set(SIDE_BY_SIDE.values()), f"a finished call was made again before {step!r} ended"
    ended = shop.end_of(shop.start())
    assert ended.code == 0, ended.stderr
    assert ended.answer["usage"]["calls"] == len(ONE_ROUND)
    assert "state: in review" in (shop.board / "shop-1.md").read_text()
    assert len(shop.published()) == 1
    wait_until(lambda: not left_behind(shop.home))

    calm = make_shop("calm")
    calm.serve(slowly())
    assert calm.end_of(calm.start()).code == 0
    assert list(map(measured, shop.published().values())) == list(map(measured, calm.published().values()))
    assert _heads(shop.home) == _heads(calm.home)


HALF = "# half"
AGENT = (
    f"cat > /tmp/prompt; if grep -q 'cut off' /tmp/prompt && grep -q '{HALF}' shop/prices.py; then "
    "sed -i 's|return sum(prices)|return sum(prices) * (100 - discount) / 100|' shop/prices.py; "
    f"else echo '{HALF}' >> shop/prices.py; echo > half-done; sleep 60; fi"
)


@pytest.mark.slow
def test_what_a_killed_agent_had_changed_is_there_when_its_ticket_goes_on(make_shop: MakeShop) -> None:
    """WS3: kill -9 in the middle of a whole agent's session; the next run goes on in the same folder, and nothing stays."""
    shop = make_shop("agent")
    shop.environment |= {
        "DARKFACTORY_AGENTS": json.dumps({"hired": {"kind": "command", "program": AGENT, "max_seconds": 120}}),
        "DARKFACTORY_ROLES": json.dumps({"coder": {"agent": "hired"}}),
        "DARKFACTORY_MODEL_TIER": "capable",
    }
    shop.serve(script(architect=PLAN, judge=ACCEPT))
    killed_at(shop, lambda shop: any(shop.home.glob("worktrees/shop-1/coder-1-1-u1/half-done")))
    ended = shop.end_of(shop.start())
    assert ended.code == 0, ended.stderr
    made = git(next(shop.home.glob("forge/*/repo.git")), "show", "agent/shop-1:shop/prices.py")
    assert HALF in made
    assert "(100 - discount) / 100" in made
    assert shop.calls().count("architect") == 1
    wait_until(lambda: not left_behind(shop.home))


def _heads(home: Path) -> str:
    remote = next(home.glob("forge/*/repo.git"))
    heads = git(remote, "for-each-ref", "--format=%(refname:short) %(objectname)")
    assert re.fullmatch(r"agent/shop-1 \w+\nmain \w+\n", heads)
    return heads


@pytest.mark.slow
def test_a_terminated_run_ends_with_130_and_its_own_words(make_shop: MakeShop) -> None:
    shop = make_shop("ended")
    shop.serve(slowly())
    process = shop.start()
    wait_until(lambda: asked("architect")(shop) or process.poll() is not None, 120)
    process.send_signal(signal.SIGTERM)
    ended = shop.end_of(process)
    assert (ended.code, ended.answer["error"]["class"]) == (130, "Interrupted"), ended.stderr
    assert "Traceback" not in ended.stderr
    wait_until(lambda: not left_behind(shop.home))
