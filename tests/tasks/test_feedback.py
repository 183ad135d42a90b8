"""The rules of the feedback loop, each on a made-up ledger in a real PostgreSQL, and the level that a run gets from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.boards import Ticket
from infra.claims import Claim
from infra.database import open_database
from infra.sections import LearningSection
from infra.settings import Settings
from tasks import services
from tasks.feedback import (
    LEAST,
    MOST,
    NOT_THE_WORK,
    START,
    Calibration,
    Rate,
    Route,
    Z,
    _note,
    as_markdown,
    lifting,
    stepped,
    take_calibration,
    wilson,
)
from tasks.models import Job, Plan, Repository, WorkUnit
from tasks.seats import seat
from tests.made_up_runs import MadeUpRuns

SECTION = LearningSection()


@pytest.fixture
def made_up(database_url: str) -> Iterator[MadeUpRuns]:
    with open_database(Settings(database_url=database_url)) as database:
        yield MadeUpRuns(database)


def calibrate(made_up: MadeUpRuns, *, keep: bool = True, **section: Any) -> Calibration:
    return take_calibration(made_up.feedback, LearningSection(**section), keep=keep)


def confidence(made: Calibration, model: str = "usual") -> float:
    return next(c.value for c in made.confidences if c.model == model)


def tomorrow(made_up: MadeUpRuns) -> None:
    made_up.at += timedelta(days=1)


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 5, 12, 40, 400.5])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95, 1.0])
def test_the_ends_of_the_interval_are_the_shares_that_a_test_at_90_percent_just_allows(
    share: float, runs: float
) -> None:
    """Wilson's interval is where |share - p| <= z * sqrt(p * (1 - p) / n)."""
    allowed = [p / 10_000 for p in range(10_001) if abs(share - p / 10_000) <= Z * math.sqrt(p * (10_000 - p) / runs) / 10_000 + 1e-9]  # fmt: skip
    assert wilson(share, runs) == pytest.approx((min(allowed), max(allowed)), abs=0.0002)


def test_without_runs_nothing_is_known() -> None:
    assert wilson(0, 0) == (0, 1)


def test_rates_are_grouped_by_intent_effort_model_node_and_repository(made_up: MadeUpRuns) -> None:
    made_up.add(4, 4, intent="docs", effort=1, node="two", repository="site")
    made_up.add(6, 3)
    found = {(g.dimension, g.name): (g.rate.runs, round(g.rate.share, 2)) for g in calibrate(made_up).groups}
    assert found == {
        ("intent", "bug"): (6, 0.5), ("intent", "docs"): (4, 1.0), ("effort", "1"): (4, 1.0), ("effort", "3"): (6, 0.5),
        ("model", "usual"): (10, 0.7), ("node", "one"): (6, 0.5), ("node", "two"): (4, 1.0),
        ("repository", "shop"): (6, 0.5), ("repository", "site"): (4, 1.0),
    }  # fmt: skip


def test_a_run_counts_half_as_much_after_thirty_days(made_up: MadeUpRuns) -> None:
    made_up.add(10, 10, days_ago=30)
    made_up.add(10, 0, days_ago=0.05)
    (rate,) = {g.rate for g in calibrate(made_up).groups}
    assert rate.weight == pytest.approx(15, abs=0.1)
    assert rate.share == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("outcome", "failure_class"),
    [("infra_failed", "Unreachable"), ("infra_failed", "RateLimited"), ("infra_failed", "AuthFailed"),
     ("infra_failed", "WorkFailed"), ("cancelled", "BudgetExhausted"), ("cancelled", "NeedsHuman"), ("cancelled", None),
     ("work_failed", "RateLimited"), ("work_failed", "QuotaExhausted"), ("work_failed", "UnknownModel")],
)  # fmt: skip
def test_faults_that_are_not_the_works_are_left_out(
    made_up: MadeUpRuns, outcome: str, failure_class: str | None
) -> None:
    """A fast death is an `infra_failed` whatever the class of its error."""
    made_up.add(20, 20)
    made_up.add(30, outcome=outcome, failure_class=failure_class)
    made = calibrate(made_up)
    assert made.runs == 20
    assert made.left_out == {failure_class or outcome: 30}
    assert confidence(made) > START


@pytest.mark.parametrize("failure_class", ["WorkFailed", "InvalidOutput", "LimitReached", "Stopped"])
def test_failures_that_burnt_their_attempt_count(made_up: MadeUpRuns, failure_class: str) -> None:
    made_up.add(10, outcome="work_failed", failure_class=failure_class)
    assert calibrate(made_up).runs == 10
    assert failure_class not in NOT_THE_WORK


# --- confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [5, 0])
def test_five_runs_change_nothing_however_they_end(made_up: MadeUpRuns, accepted: int) -> None:
    made_up.add(5, accepted)
    assert confidence(calibrate(made_up)) == START


def test_confidence_rises_a_step_near_95_percent(made_up: MadeUpRuns) -> None:
    made_up.add(40, 38)
    assert confidence(calibrate(made_up)) == pytest.approx(START + 0.05)


def test_confidence_falls_a_step_near_40_percent_failures(made_up: MadeUpRuns) -> None:
    made_up.add(40, 24)
    assert confidence(calibrate(made_up)) == pytest.approx(START - 0.10)


def test_confidence_stays_where_the_interval_holds_80_percent(made_up: MadeUpRuns) -> None:
    made_up.add(40, 32)
    assert confidence(calibrate(made_up)) == START


def test_calibrating_again_on_a_day_changes_nothing_even_after_new_runs(made_up: MadeUpRuns) -> None:
    made_up.add(40, 38)
    first = calibrate(made_up)
    made_up.add(40, 0, days_ago=0.05)
    assert calibrate(made_up) == first


def test_a_dry_run_keeps_nothing(made_up: MadeUpRuns) -> None:
    made_up.add(40, 38)
    dry = calibrate(made_up, keep=False)
    assert made_up.feedback.newest() is None
    assert calibrate(made_up) == dry


def test_without_new_runs_the_next_day_moves_no_confidence(made_up: MadeUpRuns) -> None:
    made_up.add(40, 38)
    before = confidence(calibrate(made_up))
    tomorrow(made_up)
    made = calibrate(made_up)
    assert confidence(made) == before
    assert made.confidences[0].why == "no run since the last calibration"


def test_days_of_mediocre_runs_lower_confidence_step_by_step_to_the_interval_and_no_further(
    made_up: MadeUpRuns,
) -> None:
    """However often it is repeated, a confidence does not leave the interval, so it stays a rate."""
    values = []
    for _ in range(12):
        made_up.add(20, 10, days_ago=0.1)
        made = calibrate(made_up)
        values.append(confidence(made))
        tomorrow(made_up)
    assert values[:3] == pytest.approx([0.7, 0.6, 0.5])
    assert values[-1] == pytest.approx(made.confidences[0].rate.low, abs=0.05)
    assert min(values) > 0.4  # and not LEAST


def test_confidence_is_bounded() -> None:
    def sure(share: float) -> Rate:
        low, high = wilson(share, 4_000)
        return Rate(runs=4_000, weight=4_000, share=share, low=low, high=high)

    high, low = START, START
    for _ in range(20):
        high, low = stepped(sure(1.0), high)[0], stepped(sure(0.0), low)[0]
    assert (low, high) == (LEAST, MOST)


def test_what_was_not_seen_for_sixty_days_begins_anew(made_up: MadeUpRuns) -> None:
    made_up.add(40, 20)
    assert confidence(calibrate(made_up)) < START
    made_up.at += timedelta(days=70)
    assert calibrate(made_up, keep=False).confidences == ()
    made_up.add(3, 3, days_ago=0.1)
    assert confidence(calibrate(made_up)) == START


def test_the_calibration_error_is_the_distance_of_confidence_and_outcome(made_up: MadeUpRuns) -> None:
    made_up.add(10, 9, confidence=0.9)
    made_up.add(10, 4, confidence=0.9, model="other")
    made_up.add(20, 10, confidence=0.3)
    # 20 runs expected 0.9 were 0.65; 20 expected 0.3 were 0.5
    assert calibrate(made_up).error == pytest.approx((20 * 0.25 + 20 * 0.2) / 40)


def test_an_empty_ledger_is_an_empty_calibration(made_up: MadeUpRuns) -> None:
    made = calibrate(made_up)
    assert (made.runs, made.groups, made.confidences, made.routes, made.declines, made.error) == (
        0,
        (),
        (),
        (),
        (),
        None,
    )
    assert "not known yet" in as_markdown(made)


# --- routing ----------------------------------------------------------------------------------------------------------


def routes(made: Calibration) -> dict[tuple[str, int], str]:
    return {(r.intent, r.effort): r.level for r in made.routes}


def test_a_strong_level_that_is_clearly_better_is_recommended(made_up: MadeUpRuns) -> None:
    made_up.add(30, 12)
    made_up.add(30, 28, level="strong")
    made_up.add(30, 29, effort=1)
    assert routes(calibrate(made_up)) == {("bug", 3): "strong"}


@pytest.mark.parametrize(
    ("usual", "strong"),
    [((30, 12), (19, 19)), ((19, 0), (30, 30)), ((30, 22), (30, 26)), ((30, 28), (30, 12)), ((200, 190), (30, 30))],
    ids=["few strong", "few usual", "overlap", "worse", "hardly better"],
)
def test_no_level_is_recommended_without_enough_runs_and_intervals_apart(
    made_up: MadeUpRuns, usual: tuple[int, int], strong: tuple[int, int]
) -> None:
    made_up.add(*usual)
    made_up.add(*strong, level="strong")
    assert routes(calibrate(made_up)) == {("bug", 3): "usual"}


def test_five_lucky_runs_of_the_strong_level_recommend_nothing(made_up: MadeUpRuns) -> None:
    made_up.add(200, 60)
    made_up.add(5, 5, level="strong")
    assert routes(calibrate(made_up)) == {("bug", 3): "usual"}


def test_a_recommendation_is_taken_back_when_the_strong_level_is_no_longer_better(made_up: MadeUpRuns) -> None:
    made_up.add(30, 12)
    made_up.add(30, 28, level="strong")
    assert routes(calibrate(made_up)) == {("bug", 3): "strong"}
    tomorrow(made_up)
    made_up.add(40, 12, level="strong", days_ago=0.1)
    (route,) = calibrate(made_up).routes
    assert (route.before, route.level) == ("strong", "usual")


# --- what got worse ---------------------------------------------------------------------------------------------------


def test_a_rate_that_fell_ten_points_is_reported_once_as_new(made_up: MadeUpRuns) -> None:
    made_up.add(60, 57, days_ago=30)
    made_up.add(30, 18, days_ago=3)
    made = calibrate(made_up)
    assert {(d.dimension, d.name, d.new) for d in made.declines} == {("intent", "bug", True), ("model", "usual", True)}
    tomorrow(made_up)
    assert {d.new for d in calibrate(made_up).declines} == {False}


def test_a_fall_over_few_runs_is_no_decline(made_up: MadeUpRuns) -> None:
    made_up.add(200, 200, days_ago=30)
    made_up.add(29, 0, days_ago=3)
    assert calibrate(made_up).declines == ()


def test_nine_points_are_no_decline(made_up: MadeUpRuns) -> None:
    made_up.add(100, 100, days_ago=30)
    made_up.add(100, 82, days_ago=3)
    assert calibrate(made_up).declines == ()


def test_the_report_shows_runs_intervals_changes_and_reasons(made_up: MadeUpRuns) -> None:
    made_up.add(60, 57, days_ago=30, repository="sh<b>op|x")
    made_up.add(30, 12, days_ago=3)
    made_up.add(30, 29, level="strong")
    text = as_markdown(calibrate(made_up))
    for words in ("| model | strong | 30 | 97% |", "| bug | 3 | usual | 0.80 |", "upper end is at most 80%",
                  "| bug | 3 | usual | strong |", "interval lies above", "retrain or replace", "sh&lt;b>op\\|x"):  # fmt: skip
        assert words in text


# --- one run ----------------------------------------------------------------------------------------------------------

FILE = """
models:
  local: {model: openai/small, url: "http://127.0.0.1:1/v1"}
  best: {model: anthropic/opus, url: "http://127.0.0.1:3", level: strong}
"""
PLAN = Plan(summary="s", effort=3, units=(WorkUnit(id="u1", title="t"),))


@pytest.fixture
def node(
    made_up: MadeUpRuns, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MadeUpRuns]:
    """A node with two levels that applies what was learned; the strong one has proven itself for bugs of effort 3."""
    (tmp_path / "factory.yaml").write_text(FILE)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKFACTORY_LEARNING", '{"route": true}')
    monkeypatch.setattr(services, "clock", lambda: made_up.at)
    made_up.add(30, 12)
    made_up.add(30, 28, level="strong")
    calibrate(made_up)
    services.close()
    yield made_up
    services.close()


def job(made_up: MadeUpRuns, *, attempt: int = 1, attempt_id: int | None = None, strong: bool = False) -> Job:
    router = services.router("strong" if strong else "usual")
    return Job.model_construct(
        ticket=Ticket(key="T-1", title="Sum is wrong", body="b", state="todo", labels=("bug",)),
        repository=Repository(name="shop", mirror="m", remote="r", base_branch="main", base_sha="a" * 40),
        attempt_id=attempt_id or made_up.new_attempt(), attempt=attempt, model=router.name, tier=router.tier,
        context_tokens=router.context_tokens, coder_level=None,
        claim=Claim.model_construct(board="folder", ticket="T-1", token=1, node="one"),
    )  # fmt: skip


def test_the_coder_starts_where_the_calibration_recommends_and_nobody_else(node: MadeUpRuns) -> None:
    noted = _note(job(node), PLAN)
    assert (noted.level, noted.lifted_by, noted.model) == ("strong", "route", services.router("strong").name)
    assert "93% of 30" in noted.why
    lifted = job(node).model_copy(update={"coder_level": "strong"})
    assert [seat(lifted, role, 3).model for role in ("coder", "judge")] == [services.router(level).name for level in ("strong", "usual")]  # fmt: skip


def test_another_effort_stays_where_the_settings_put_it(node: MadeUpRuns) -> None:
    noted = _note(job(node), PLAN.model_copy(update={"effort": 2}))
    assert (noted.level, noted.lifted_by, noted.confidence) == ("usual", None, START)


def test_a_recommendation_is_only_shown_without_leave_to_apply_it(
    node: MadeUpRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_LEARNING", '{"route": false}')
    services.close()
    noted = _note(job(node), PLAN)
    assert (noted.level, noted.lifted_by) == ("usual", None)
    assert "learning.route" in noted.why


def test_without_a_strong_level_nothing_is_lifted(
    node: MadeUpRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory.yaml").write_text("model: openai/small\nmodel_url: http://127.0.0.1:1/v1\n")
    services.close()
    noted = _note(job(node), PLAN)
    assert (noted.level, noted.lifted_by) == ("usual", None)
    assert seat(job(node).model_copy(update={"coder_level": "strong"}), "coder", 3).model == noted.model


def test_a_resumed_attempt_keeps_its_level_when_the_recommendation_has_changed(node: MadeUpRuns) -> None:
    first = _note(begun := job(node), PLAN)
    tomorrow(node)
    node.add(60, 6, level="strong", days_ago=0.1)
    assert calibrate(node).routes[0].level == "usual"
    assert _note(begun, PLAN) == first
    assert _note(job(node), PLAN).level == "usual"


def test_no_more_runs_are_lifted_than_the_settings_allow(node: MadeUpRuns) -> None:
    """Of 60 earlier runs none was lifted: 25 of 85 fit into 30 %, one more does not."""
    noted = [_note(job(node), PLAN) for _ in range(26)]
    assert [each.lifted_by for each in noted] == ["route"] * 25 + [None]
    assert "max_strong_share" in noted[-1].why


def test_an_attempt_on_the_strong_level_anyway_is_noted_as_such(node: MadeUpRuns) -> None:
    noted = _note(job(node, strong=True, attempt=3), PLAN)
    assert (noted.level, noted.lifted_by) == ("strong", None)


def known(confidence: float, level: str = "usual") -> Calibration:
    rate = Rate(runs=30, weight=30, share=0.5, low=0.4, high=0.6)
    found = {"intent": "bug", "effort": 3, "model": "small", "rate": rate, "before": 0.8, "value": confidence,
             "last_run": "2026-11-20T00:00:00Z", "why": ""}  # fmt: skip
    route = Route(intent="bug", effort=3, level=level, before="usual", usual=rate, strong=rate, why="w")  # type: ignore[arg-type]
    return Calibration(day="2026-11-21", at="2026-11-21T00:00:00Z", runs=30, confidences=(found,), routes=(route,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attempt", "confidence", "level", "expected"),
    [(1, 0.3, "usual", None), (2, 0.3, "usual", "confidence"), (2, 0.5, "usual", None), (1, 0.9, "strong", "route"),
     (2, 0.3, "strong", "route")],
)  # fmt: skip
def test_low_confidence_lifts_the_second_attempt_and_never_the_first(
    attempt: int, confidence: float, level: str, expected: str | None
) -> None:
    from infra.feedback import Traits

    plain = Traits(attempt=1, intent="bug", effort=3, level="usual", model="small", node="n", repository="r",
                   confidence=confidence)  # fmt: skip
    found = lifting(plain, attempt, known(confidence, level), SECTION)
    assert (found[0] if found else None) == expected
    assert lifting(plain, attempt, None, LearningSection(low_confidence=0)) is None
