"""Jobs on a real PostgreSQL: caps that hold for any number of processes, and what is given back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from infra.database import Database
from infra.runner_jobs import NoRoom, RunnerJob, RunnerJobs, Used
from infra.sections import ActionsSection

MORNING = datetime(2026, 1, 31, 9, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = MORNING

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(database_url: str, clock: Clock) -> Iterator[RunnerJobs]:
    with Database(database_url.replace("postgresql://", "postgresql+psycopg://")) as database:
        yield RunnerJobs(database, clock)


def section(**changes: Any) -> ActionsSection:
    return ActionsSection.model_validate({"project": "acme/shop", "token": "t", **changes})


def reserve(jobs: RunnerJobs, id: str, **changes: Any) -> tuple[RunnerJob, bool]:
    return jobs.reserve(id, section(**changes), board="b", ticket="T-1", minutes=30, requests=18)


def test_a_unit_has_one_job_however_often_it_is_asked_for(jobs: RunnerJobs) -> None:
    first, fresh = reserve(jobs, "u1")
    assert (first.state, first.run, fresh) == ("open", None, True)
    jobs.started("u1", 7)
    again, fresh = reserve(jobs, "u1", parallel=1)
    assert (again.run, fresh) == (7, False), "also when there is no room for another one"
    jobs.settle("u1", "done", minutes=2, requests=5)
    assert reserve(jobs, "u1")[0].state == "done"
    assert jobs.used("acme/shop") == Used(open=0, minutes=2, requests=5)


def test_racing_processes_never_pass_a_cap_together(jobs: RunnerJobs) -> None:
    def try_one(number: int) -> bool:
        try:
            return reserve(jobs, f"u{number}", parallel=8)[1]
        except NoRoom:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_one, range(24))) == 8
    assert jobs.used("acme/shop").open == 8
    assert reserve(jobs, "other", project="acme/lib")[1], "another project has runners of its own"


def test_there_are_never_more_than_twenty() -> None:
    with pytest.raises(ValidationError, match="20"):
        section(parallel=21)


def test_what_an_open_job_may_use_counts_as_used_until_it_is_given_back(jobs: RunnerJobs, clock: Clock) -> None:
    caps = {"minutes_per_month": 60, "requests_per_day": 150, "parallel": 20}
    reserve(jobs, "u1", **caps)
    reserve(jobs, "u2", **caps)
    with pytest.raises(NoRoom, match="60 of 60 minutes") as full:
        reserve(jobs, "u3", **caps)
    assert full.value.reset_at == datetime(2026, 2, 1, tzinfo=UTC)
    jobs.settle("u1", "failed", minutes=2, requests=None, reason="x")
    assert jobs.used("acme/shop") == Used(open=1, minutes=32, requests=36), "what is not known counts in full"
    with pytest.raises(NoRoom):
        jobs.check_room(section(**caps), minutes=30, requests=18)
    jobs.settle("u2", "done", minutes=3, requests=4)
    assert reserve(jobs, "u3", **caps)[1]


def test_requests_count_by_the_day_and_minutes_by_the_month(jobs: RunnerJobs, clock: Clock) -> None:
    caps = {"requests_per_day": 20, "minutes_per_month": 40, "parallel": 20}
    reserve(jobs, "u1", **caps)
    jobs.settle("u1", "done", minutes=10, requests=10)
    with pytest.raises(NoRoom, match="10 of 20 requests") as full:
        reserve(jobs, "u2", **caps)
    assert full.value.reset_at == datetime(2026, 2, 1, tzinfo=UTC)
    clock.now += timedelta(days=1)
    assert jobs.used("acme/shop") == Used(open=0, minutes=0, requests=0), "another day, and another month"
    assert reserve(jobs, "u2", **caps)[1]
    clock.now = datetime(2026, 3, 1, tzinfo=UTC)
    assert jobs.used("acme/shop").minutes == 30, "one that is still open counts in every period"


def test_the_end_of_a_job_is_written_once_and_without_secrets(jobs: RunnerJobs) -> None:
    reserve(jobs, "u1")
    jobs.settle("u1", "failed", minutes=1, requests=0, reason="token ghp_0123456789abcdefghij is bad")
    jobs.settle("u1", "done", minutes=9, requests=9)
    found = jobs.find("u1")
    assert found is not None
    assert (found.state, found.minutes, found.reason) == ("failed", 1, "token *** is bad")
    assert (jobs.open_jobs(), jobs.find("u2")) == ([], None)
