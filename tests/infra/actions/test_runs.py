"""Runs of the workflow over real HTTP, against a GitHub that holds both sides to its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.actions import MAX_INPUT_CHARS, Actions, pack
from infra.actions.archive import MAX_ARCHIVE_BYTES
from infra.errors import ConfigError, InfraError, LimitReached, ProviderFault, RateLimited, Unreachable
from infra.github import Missing
from tests.fakes.actions import FakeActions, archived

UNIT, BASE = "a" * 24, "b" * 40
LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def fake() -> Iterator[FakeActions]:
    with FakeActions(lambda run: archived("a patch")) as started:
        yield started


@pytest.fixture
def actions(fake: FakeActions) -> Actions:
    return Actions(fake.actions_section())


def start(actions: Actions) -> int:
    number = actions.dispatch(UNIT, "acme/shop", BASE, pack("{}"))
    assert number is not None
    return number


def test_a_unit_is_dispatched_watched_and_fetched(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    assert actions.run(number).conclusion is None
    assert actions.run(number).conclusion == "success"
    assert actions.artifact(number, UNIT) == fake.workflow_runs[number].archive
    assert fake.workflow_runs[number].inputs == {
        "unit": UNIT, "repository": "acme/shop", "base": BASE, "payload": pack("{}"),
    }  # fmt: skip


def test_a_github_that_names_no_run_is_asked_for_it_by_its_title(fake: FakeActions, actions: Actions) -> None:
    fake.says_run = False
    assert actions.dispatch(UNIT, "acme/shop", BASE, "x") is None
    assert actions.find("c" * 24, LONG_AGO) is None
    found = actions.find(UNIT, LONG_AGO)
    assert found is not None
    assert found.id in fake.workflow_runs
    assert actions.find(UNIT, datetime.now(UTC) + timedelta(hours=1)) is None


def test_minutes_are_each_jobs_time_rounded_up(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    assert actions.minutes(number) == 0, "it still runs"
    fake.workflow_runs[number].over = True
    for seconds, billed in ((1, 1), (60, 1), (61, 2)):
        fake.workflow_runs[number].seconds = seconds
        assert actions.minutes(number) == billed


def test_cancelling_twice_or_what_is_gone_is_no_error(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    actions.cancel(number)
    actions.cancel(number)
    actions.cancel(4_711)
    assert fake.workflow_runs[number].cancelled
    with pytest.raises(Missing):
        actions.run(4_711)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"installed": False}, "has no workflow 'darkfactory-unit.yml' on 'main'.*darkfactory actions --install"),
        ({"enabled": False}, "disabled workflow; enable the workflow"),
        ({"may_dispatch": False}, "needs the permission Actions: read and write"),
    ],
)
def test_what_a_person_has_to_change_is_said(
    fake: FakeActions, actions: Actions, broken: dict[str, bool], words: str
) -> None:
    for name, value in broken.items():
        setattr(fake, name, value)
    with pytest.raises(ConfigError, match=words):
        actions.dispatch(UNIT, "acme/shop", BASE, "x")


def test_limits_and_outages_keep_their_own_errors(fake: FakeActions, actions: Actions) -> None:
    """RB8."""
    fake.inject("dispatches", 403, {"message": "You have exceeded a secondary rate limit"}, {"Retry-After": "7"})
    fake.inject("dispatches", 429, {"message": "slow down"})
    fake.inject("dispatches", 502, b"<html>")
    with pytest.raises(RateLimited) as limited:
        actions.dispatch(UNIT, "acme/shop", BASE, "x")
    assert limited.value.reset_at is not None
    assert 0 < (limited.value.reset_at - datetime.now(UTC)).total_seconds() <= 7
    with pytest.raises(RateLimited):
        actions.dispatch(UNIT, "acme/shop", BASE, "x")
    with pytest.raises(Unreachable):
        actions.dispatch(UNIT, "acme/shop", BASE, "x")
    assert fake.workflow_runs == {}


def test_a_commit_that_was_not_pushed_is_not_there(fake: FakeActions, actions: Actions) -> None:
    fake.commits = {BASE}
    assert actions.has_commit("acme/shop", BASE)
    assert not actions.has_commit("acme/shop", "c" * 40)
    assert actions.has_commit("other/lib", BASE), "a public repository of somebody else"


def test_a_run_that_left_nothing_or_too_late_or_something_else_is_not_used(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    run = fake.workflow_runs[number]
    with pytest.raises(ProviderFault, match="left no artifact"):
        actions.artifact(number, UNIT)
    run.over, run.expired = True, True
    with pytest.raises(ProviderFault, match="left no artifact"):
        actions.artifact(number, UNIT)
    run.expired, run.digest = False, f"sha256:{'0' * 64}"
    with pytest.raises(ProviderFault, match="not the one that was uploaded"):
        actions.artifact(number, UNIT)


def test_an_archive_without_end_is_not_read_to_its_end(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    run = fake.workflow_runs[number]
    run.over, run.archive = True, bytes(MAX_ARCHIVE_BYTES + 1)
    with pytest.raises(ProviderFault, match=f"more than {MAX_ARCHIVE_BYTES} bytes"):
        actions.artifact(number, UNIT)


def test_the_address_of_an_archive_is_in_no_message(fake: FakeActions, actions: Actions) -> None:
    number = start(actions)
    fake.workflow_runs[number].over = True
    for status in (403, 500):
        fake.inject("blob", status, b"no")
        with pytest.raises(Unreachable) as refused:
            actions.artifact(number, UNIT)
        assert "sig" not in str(refused.value)
    fake.inject("/zip", 302, b"", {"Location": "http://elsewhere.example/x"})
    with pytest.raises(InfraError, match="no usable address"):
        actions.artifact(number, UNIT)


def test_what_is_too_large_for_a_dispatch_is_refused() -> None:
    assert len(pack("same " * 100_000)) < 2_000
    noise = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(40_000))
    with pytest.raises(LimitReached, match=str(MAX_INPUT_CHARS)):
        pack(noise)
