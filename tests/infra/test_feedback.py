"""The ledger of the feedback loop on a real PostgreSQL: noted once, calibrated once per day, a share that is never passed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from infra.database import open_database
from infra.feedback import Feedback, Run, Traits
from infra.settings import Settings
from tests.made_up_runs import MadeUpRuns


@pytest.fixture
def made_up(database_url: str) -> Iterator[MadeUpRuns]:
    with open_database(Settings(database_url=database_url)) as database:
        yield MadeUpRuns(database)


def traits(attempt: int, **changes: Any) -> Traits:
    plain: dict[str, Any] = {"intent": "bug", "effort": 3, "level": "usual", "model": "small", "node": "one",
                             "repository": "shop", "confidence": 0.8}  # fmt: skip
    return Traits(attempt=attempt, **{**plain, **changes})


def test_the_first_note_of_an_attempt_stays(made_up: MadeUpRuns) -> None:
    attempt = made_up.new_attempt()
    first = made_up.feedback.note(traits(attempt))
    assert made_up.feedback.note(traits(attempt, level="strong", model="large", confidence=0.1)) == first
    assert made_up.feedback.note(traits(attempt), traits(attempt, lifted_by="route"), 1.0).lifted_by is None


def test_racing_runs_never_lift_more_than_their_share(made_up: MadeUpRuns) -> None:
    made_up.add(10, 10)
    attempts = [made_up.new_attempt() for _ in range(10)]

    def note(attempt: int) -> Traits:
        lifted = traits(attempt, level="strong", model="large", lifted_by="route")
        return made_up.feedback.note(traits(attempt), lifted, 0.3)

    with ThreadPoolExecutor(10) as pool:
        noted = list(pool.map(note, attempts))
    assert sum(each.lifted_by is not None for each in noted) == 6  # of 20 runs
    assert {each.model for each in noted if each.lifted_by is None} == {"small"}


def test_runs_lifted_long_ago_leave_room_again(made_up: MadeUpRuns) -> None:
    made_up.add(10, 10, days_ago=31, lifted_by="route", level="strong")
    made_up.add(10, 10, days_ago=1)
    attempt = made_up.new_attempt()
    assert made_up.feedback.note(traits(attempt), traits(attempt, lifted_by="route"), 0.3).lifted_by == "route"


def test_two_calibrations_of_a_day_at_the_same_time_count_once(made_up: MadeUpRuns) -> None:
    made: list[int] = []
    start = threading.Barrier(4)

    def make(runs: list[Run], before: dict[str, Any] | None, at: datetime) -> dict[str, Any]:
        made.append(1)
        return {"number": len(made)}

    def calibrate(_: int) -> dict[str, Any]:
        start.wait(10)
        return Feedback(made_up.database, lambda: made_up.at).calibrated(60, make, keep=True)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(calibrate, range(4)))
    assert found == [{"number": 1}] * 4
    assert len(made) == 1


def test_a_calibration_is_told_the_last_one_of_an_earlier_day(made_up: MadeUpRuns) -> None:
    seen: list[dict[str, Any] | None] = []

    def make(runs: list[Run], before: dict[str, Any] | None, at: datetime) -> dict[str, Any]:
        seen.append(before)
        return {"day": at.day}

    made_up.feedback.calibrated(60, make, keep=True)
    made_up.feedback.calibrated(60, make, keep=False)  # today's own is no earlier one
    made_up.at += timedelta(days=3)
    made_up.feedback.calibrated(60, make, keep=True)
    assert seen == [None, None, {"day": 21}]
    assert made_up.feedback.newest() == {"day": 24}


def test_a_calibration_that_dies_while_it_is_made_keeps_nothing(made_up: MadeUpRuns) -> None:
    def die(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_up.feedback.calibrated(60, die, keep=True)
    assert made_up.feedback.newest() is None
    assert made_up.feedback.calibrated(60, lambda *_: {"ok": True}, keep=True) == {"ok": True}


def test_runs_are_those_that_ended_within_the_days_with_how_they_ended(made_up: MadeUpRuns) -> None:
    made_up.add(1, 1, days_ago=61)
    made_up.add(1, days_ago=59, outcome="work_failed", failure_class="LimitReached")
    made_up.new_attempt()
    seen: list[Run] = []
    made_up.feedback.calibrated(60, lambda runs, *_: seen.extend(runs) or {}, keep=False)
    assert [(run.outcome, run.failure_class, run.traits.intent) for run in seen] == [
        ("work_failed", "LimitReached", "bug")
    ]


def test_a_day_is_told_once(made_up: MadeUpRuns) -> None:
    day = made_up.at.date()
    assert not made_up.feedback.untold(day)
    made_up.feedback.calibrated(60, lambda *_: {}, keep=True)
    assert made_up.feedback.untold(day)
    made_up.feedback.tell(day)
    assert not made_up.feedback.untold(day)
