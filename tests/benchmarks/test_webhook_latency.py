"""The arithmetic of the webhook benchmark: steps that add up, ranks of few values, and a verdict that can fail."""

from __future__ import annotations

import json

import pytest

from benchmarks.webhook_latency import STEPS, TOTAL, Timeline, percentile, report, spent, summary, table

POINTS = [*(step.start for step in STEPS), STEPS[-1].end, "model_call"]


def timeline(each: float, begun: float = 1_000_000.0) -> Timeline:
    """A ticket whose every step took `each` seconds."""
    return Timeline(**{point: begun + place * each for place, point in enumerate(POINTS)})


def test_the_steps_follow_each_other_without_gap_and_add_up_to_the_total() -> None:
    assert [step.end for step in STEPS[:-1]] == [step.start for step in STEPS[1:]]
    assert (STEPS[0].start, STEPS[-1].end) == (TOTAL.start, TOTAL.end)
    uneven = Timeline(**{point: 50 + place**2 for place, point in enumerate(POINTS)})
    assert sum(spent(step, [uneven])[0] for step in STEPS) == pytest.approx(uneven.total)


def test_every_point_of_a_timeline_ends_a_step() -> None:
    assert list(Timeline.model_fields) == POINTS


def test_the_95th_percentile_of_twenty_is_the_second_largest() -> None:
    assert percentile(range(20, 0, -1), 0.95) == 19
    assert percentile(range(1, 22), 0.95) == 20


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_one_value_is_every_percentile(share: float) -> None:
    assert percentile([3.0], share) == 3.0


def test_half_of_an_even_number_is_the_lower_of_the_two_in_the_middle() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2


def test_a_step_that_did_not_wait_for_the_one_before_shows_as_negative() -> None:
    early = timeline(1).model_copy(update={"event": timeline(1).answered - 0.25})
    assert spent(STEPS[1], [early]) == [-0.25]


def test_the_summary_has_every_step_over_all_tickets() -> None:
    found = summary([timeline(0.1), timeline(0.2, begun=2_000_000.0)])
    assert found[STEPS[0].name] == pytest.approx({"p50": 0.1, "p95": 0.2, "max": 0.2})
    assert found[TOTAL.name] == pytest.approx(
        {"p50": len(STEPS) * 0.1, "p95": len(STEPS) * 0.2, "max": len(STEPS) * 0.2}
    )
    assert len(table([timeline(0.1)]).splitlines()) == 2 + len(found) == 2 + len(STEPS) + 2


@pytest.mark.parametrize(("seconds", "kept", "words"), [(4.9, True, "kept"), (5.2, False, "NOT KEPT")])
def test_the_report_says_whether_the_promise_was_kept_and_under_which_load(
    seconds: float, kept: bool, words: str
) -> None:
    timelines = [timeline(seconds / len(STEPS))] * 20
    text = report(timelines, (0.25, 1.5), as_json=False)
    assert text.splitlines()[-1] == f"p95 {seconds:.2f} s of at most 5 s: {words}"
    assert "load average 0.25 before, 1.50 after" in text
    said = json.loads(report(timelines, (0.25, 1.5), as_json=True))
    assert (said["kept"], said["load_before"], said["load_after"], len(said["tickets"])) == (kept, 0.25, 1.5, 20)
