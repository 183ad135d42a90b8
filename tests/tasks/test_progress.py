"""Progress is told to whoever listens, and a broken listener costs nothing."""

from __future__ import annotations

import threading
import time

import pytest

from tasks import progress
from tasks.progress import Progress


def test_listeners_hear_reports_until_they_end() -> None:
    heard: list[Progress] = []
    end = progress.subscribe(heard.append)
    progress.report("T-1", phase="code", role="coder", tokens=3)
    end()
    progress.report("T-1", phase="code", role="coder", tokens=4)
    assert heard == [Progress(ticket="T-1", phase="code", role="coder", tokens=3)]


def test_a_listener_that_fails_harms_neither_the_step_nor_the_others() -> None:
    heard: list[Progress] = []

    def broken(_: Progress) -> None:
        raise OSError("no screen")

    ends = [progress.subscribe(broken), progress.subscribe(heard.append)]
    progress.report("T-1", message="still here")
    for end in ends:
        end()
    assert [event.message for event in heard] == ["still here"]


@pytest.fixture
def five_seconds_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_last", time.monotonic() - 5)


@pytest.mark.usefixtures("five_seconds_ago")
def test_a_report_ends_the_silence() -> None:
    """RC2: it is silence that counts, not how long something takes."""
    assert progress.idle_seconds() == pytest.approx(5, abs=1)
    progress.report("T-1", tokens=8)
    assert progress.idle_seconds() < 1


@pytest.mark.usefixtures("five_seconds_ago")
def test_an_announced_silence_does_not_count_until_its_time_is_over() -> None:
    """RC1: a test suite with a time limit of its own is not stuck."""
    with progress.may_be_silent(3), progress.may_be_silent(60):
        assert progress.idle_seconds() == 0
    assert progress.idle_seconds() < 1, "its end is progress, too"


@pytest.mark.usefixtures("five_seconds_ago")
def test_what_is_silent_for_longer_than_it_said_is_idle() -> None:
    with progress.may_be_silent(-2):
        assert progress.idle_seconds() == pytest.approx(2, abs=1)


def test_a_heartbeat_may_ask_while_steps_begin_and_end() -> None:
    """The one reader in another thread never sees the announcements half changed."""
    over, found = threading.Event(), list[float]()

    def ask() -> None:
        while not over.is_set():
            found.append(progress.idle_seconds())

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(2_000):
        with progress.may_be_silent(9), progress.may_be_silent(9):
            pass
    over.set()
    asking.join(10)
    assert found
    assert max(found) < 5
