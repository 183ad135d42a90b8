"""What is let into memory, under which identity, and what a second writing does to a point."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.memory import MAX_TEXT_CHARS, Record
from infra.memory.records import Refused, admit, event_id, joined, point_id, signature, weight

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def record(text: str = "Gradle build needs JDK 17, not 21", **more: Any) -> Record:
    return Record(**{"kind": "lesson", "text": text, "scope": "shop", "created_at": NOW, **more})


@pytest.mark.parametrize("text", ["", "short", "TODO", "tests passed.  .  .  .  .  .", "lorem ipsum dolor sit amet consectetur", "<a description of the lesson>"])  # fmt: skip
def test_a_text_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"too short|placeholder"):
        admit(record(text))


def test_secrets_never_get_in_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "correct-horse-battery")
    kept = admit(
        record(
            "Log in to the shop with correct-horse-battery or ghp_0123456789abcdef0123",
            source="by sk-0123456789abcdefghij",
        )
    )
    assert "correct-horse" not in kept.model_dump_json()
    assert "ghp_" not in kept.text
    assert "sk-" not in kept.source
    with pytest.raises(Refused, match="too short"):
        admit(record("sk-0123456789abcdefghij0123456789"))


def test_an_oversized_text_is_cut_and_a_hostile_one_becomes_one_plain_line() -> None:
    assert len(admit(record("word " * 5_000)).text) <= MAX_TEXT_CHARS
    kept = admit(record("first line of it\nsecond\r\x00\x1b[31m \u2028third \u202egnp.exe and \ud800 more"))
    assert kept.text.isprintable()
    assert kept.model_dump_json()


def test_the_same_thing_said_again_is_the_same_point_on_every_machine() -> None:
    assert point_id(record()) == point_id(record(source="run 2")) == "7e6d1527-a33b-5138-8c0b-161f2eb4d1f4"
    assert point_id(record()) != point_id(record(scope="other"))
    assert point_id(record(key="k")) == point_id(record("Quite another text about it", key="k"))
    assert event_id(record()) == event_id(record(created_at=NOW + timedelta(days=1)))
    assert event_id(record()) != event_id(record(source="run 2"))


def test_a_second_writing_counts_and_the_same_one_again_does_not() -> None:
    first, second = record(key="k", source="run 1"), record(
        "Gradle build needs JDK 17 since wrapper 8", key="k", source="run 2", created_at=NOW + timedelta(hours=1)
    )  # fmt: skip
    once = joined(joined(None, first, "e1"), second, "e2")
    assert (once.seen, once.sources, once.record.text) == (2, ("run 2", "run 1"), second.text)
    assert joined(joined(once, first, "e1"), second, "e2") == once


def test_an_older_writing_that_comes_late_does_not_replace_a_newer_text() -> None:
    newer, older = record("The newer text about the build", key="k"), record("The older text about the build", key="k", created_at=NOW - timedelta(days=1))  # fmt: skip
    assert joined(joined(None, newer, "e1"), older, "e2").record.text == newer.text


def test_what_was_confirmed_once_stays_confirmed() -> None:
    point = joined(joined(None, record(key="k", confirmed=True), "e1"), record(key="k", source="2"), "e2")
    assert point.record.confirmed


def test_outcomes_and_observations_expire_and_lessons_stay() -> None:
    assert joined(None, record(kind="outcome"), "e").expires_at == NOW + timedelta(days=180)
    assert joined(None, record(kind="observation"), "e").expires_at == NOW + timedelta(days=30)
    assert joined(None, record(), "e").expires_at is None


def test_age_and_doubt_lower_a_rank_but_never_below_a_quarter() -> None:
    fresh = joined(None, record(a=9, b=1), "e")
    assert weight(fresh, NOW) > weight(fresh, NOW + timedelta(days=365)) > weight(fresh, NOW + timedelta(days=9_999)) > 0.25  # fmt: skip
    assert weight(fresh, NOW) > weight(joined(None, record(), "e"), NOW)


def test_failures_that_differ_in_numbers_paths_and_hashes_have_one_signature() -> None:
    one = signature("TestsFailed", "exit 137 after 12.5 s in /tmp/a1/worktrees/x at deadbeef01")
    assert one == signature("TestsFailed", "exit 1 after 3 s in /home/me/y/z at 0123456789ab")
    assert one != signature("TestsFailed", "no tests were found")
    assert len(signature("X", "word " * 1_000)) <= 300
