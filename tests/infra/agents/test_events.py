"""What programs print is cut, parsed and counted within bounds, whatever they print."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from infra.agents import MAX_EVENTS, Activity, Session
from infra.agents import events as module
from infra.agents.events import Event, Lines, Story, Transcript, bounded, parse, read_session_file, tokens, usd
from infra.agents.opencode import OpenCodeStory
from infra.llm import Usage

SESSION = Session(prompt="p", max_seconds=1, max_turns=3, max_usd=0.5)


def test_lines_are_the_same_however_they_are_cut() -> None:
    text = b"one\ntwo\n\nthree"
    for size in range(1, len(text)):
        lines = Lines()
        found = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
        assert [*found, *lines.flush()] == [b"one", b"two", b"three"]


def test_a_line_that_never_ends_costs_no_memory_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 10)
    lines = Lines()
    assert list(lines.feed(b"x" * 100)) == []
    assert lines._line == b""
    assert list(lines.feed(b"yy\nshort\n")) == [b"short"]


@pytest.mark.parametrize("line", [b"", b"hello", b"[1]", b"{", b'{"a": 1', b"{}x", b"\xff{", b'{"a":' * 5_000])
def test_what_is_no_json_object_is_no_event(line: bytes) -> None:
    assert parse(line) is None


def test_an_event_is_bounded_and_can_be_stored() -> None:
    deep: object = "end"
    for _ in range(50):
        deep = {"next": deep}
    line = json.dumps({"text": "x" * 100_000, "list": list(range(5_000)), "deep": deep, "bad": "a\ud800b\0c"})
    event = parse(line.replace('"end"', "NaN").encode())
    assert event is not None
    assert len(json.dumps(event).encode()) < 20_000
    assert event["bad"] == "a?bc"
    assert bounded(float("inf")) is None


@pytest.mark.parametrize("value", [None, True, -1, "7", 1.5, [], {}, 10**30])
def test_a_count_that_is_none_counts_nothing(value: object) -> None:
    assert tokens(value) == 0


@pytest.mark.parametrize("value", [None, True, -1, "7", [], float("nan"), float("inf"), 10**30])
def test_a_price_that_is_none_costs_nothing(value: object) -> None:
    assert usd(value) == 0


def told(story: Story, *events: Event, session: Session = SESSION) -> tuple[Transcript, list[Activity]]:
    activities: list[Activity] = []
    transcript = Transcript(story, session, activities.append)
    for event in events:
        transcript.feed(json.dumps(event).encode() + b"\n")
    return transcript, activities


def step(tokens: object = None, cost: float = 0.0) -> Event:
    return {"type": "step_finish", "part": {"reason": "tool-calls", "tokens": tokens, "cost": cost}}


def test_the_first_and_the_last_events_are_kept() -> None:
    transcript, _ = told(Story(), *({"n": n} for n in range(3 * MAX_EVENTS)))
    kept = [event["n"] for event in transcript.events]
    assert len(kept) == MAX_EVENTS
    assert (kept[0], kept[MAX_EVENTS // 4 - 1], kept[-1]) == (0, MAX_EVENTS // 4 - 1, 3 * MAX_EVENTS - 1)


def test_usage_is_told_in_parts_that_add_up() -> None:
    """OB3: what is told is new since the last time, so that whoever adds it up counts everything once."""
    one = {"input": 70, "output": 5, "reasoning": 2, "cache": {"read": 20, "write": 10}}
    transcript, activities = told(OpenCodeStory(), step(one, 0.1), step(one, 0.2))
    parts = [activity.usage for activity in activities if activity.kind == "usage"]
    assert parts[0] == Usage(prompt_tokens=100, cached_tokens=20, completion_tokens=7, calls=1, cost_usd=0.1)
    assert sum(parts, Usage()) == transcript.usage


@pytest.mark.parametrize(
    ("events", "overrun"),
    [([step()] * 3, None), ([step()] * 4, "turns"), ([step(cost=0.4)], None), ([step(cost=0.4)] * 2, "usd")],
)
def test_the_sessions_own_limits_are_noticed(events: list[Event], overrun: str | None) -> None:
    assert told(OpenCodeStory(), *events)[0].overrun == overrun


def test_a_secret_that_the_program_prints_is_masked() -> None:
    activities: list[Activity] = []
    transcript = Transcript(OpenCodeStory(), SESSION, activities.append, hidden=["very-secret-token"])
    transcript.feed(b'{"type": "text", "part": {"text": "it is very-secret-token"}}\nplain very-secret-token\n')
    assert "very-secret" not in f"{transcript.events} {transcript.output} {transcript.story.said} {activities}"


def test_only_a_regular_file_of_a_session_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    assert [read_session_file(tmp_path / name) for name in ("secret", "link", "pipe", "none")] == [
        b"secret",
        b"",
        b"",
        b"",
    ]
