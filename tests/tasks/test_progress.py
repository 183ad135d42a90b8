"""Progress is told to whoever listens, and a broken listener costs nothing."""

from __future__ import annotations

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
