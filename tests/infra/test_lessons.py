"""Lessons on a real PostgreSQL server: what makes a correction, who is told, and that everything counts once (L1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from infra.database import Database, open_database
from infra.errors import ConfigError
from infra.lessons import (
    EQUAL_FAILURES,
    MESSAGE_CHARS,
    MOST_ACTIVE,
    PROMOTED_AFTER,
    Correction,
    Failure,
    Kind,
    Lessons,
    Shown,
)
from infra.settings import Settings

BUGS = Kind(repository="shop", intent="bug", effort=1)
RULE = Failure(
    pattern="broken: tests/test_house.py::test_texts", message="tests/test_house.py::test_texts failed: use format"
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(Settings(database_url=database_url)) as opened:
        yield opened


@pytest.fixture
def lessons(database: Database) -> Lessons:
    return Lessons(database)


def failure(name: str) -> Failure:
    return Failure(pattern=f"broken: {name}", message=f"{name} failed")


def words(corrections: Sequence[Correction]) -> list[Shown]:
    return [Shown(correction=each.id, text=f"{each.message}, {each.seen} times") for each in corrections]


def fail(lessons: Lessons, *failures: Failure, kind: Kind = BUGS, times: int = EQUAL_FAILURES, who: str = "T") -> None:
    for number in range(times):
        lessons.note(f"{who}-{number}", kind, failures)


def active(lessons: Lessons) -> list[str]:
    return [each.message for each in lessons.corrections() if each.state == "active"]


def run(lessons: Lessons, attempt: str, *, accepted: bool, again: bool = False) -> None:
    lessons.brief(attempt, BUGS, words)
    if again:
        lessons.note(attempt, BUGS, [RULE])
    lessons.settle(attempt, accepted=accepted)


def test_the_third_attempt_with_an_equal_failure_makes_a_correction(lessons: Lessons) -> None:
    fail(lessons, RULE, times=EQUAL_FAILURES - 1)
    assert lessons.corrections() == []
    fail(lessons, RULE)
    (made,) = lessons.corrections("shop")
    assert (made.pattern, made.seen, made.state, made.applied) == (RULE.pattern, 3, "active", 0)


def test_a_run_that_is_repeated_counts_once(lessons: Lessons) -> None:
    for _ in range(5):
        lessons.note("T-1", BUGS, [RULE, RULE])
    assert lessons.corrections() == []


@pytest.mark.parametrize("other", [{"repository": "depot"}, {"intent": "feature"}, {"effort": 2}])
def test_failures_of_another_kind_of_work_are_not_equal(lessons: Lessons, other: dict[str, object]) -> None:
    fail(lessons, RULE, times=2)
    another = BUGS.model_copy(update=other)
    lessons.note("U-1", another, [RULE])
    assert lessons.corrections() == []
    fail(lessons, RULE)
    assert lessons.brief("V-1", another, words) == ()


def test_processes_at_the_same_time_make_one_correction(database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: Lessons(database).note(f"T-{n % 6}", BUGS, [RULE]), range(24)))
    (made,) = Lessons(database).corrections()
    assert made.seen == 6


def test_an_attempt_is_told_the_same_when_it_is_resumed(lessons: Lessons) -> None:
    assert lessons.brief("A", BUGS, words) == ()
    fail(lessons, RULE)
    assert lessons.brief("A", BUGS, words) == ()
    told = lessons.brief("B", BUGS, words)
    assert [each.text for each in told] == [f"{RULE.message}, 3 times"]
    fail(lessons, RULE, failure("another"), who="U")
    assert lessons.brief("B", BUGS, words) == told
    assert [each.applied for each in lessons.corrections() if each.id == told[0].correction] == [1]


def test_an_attempt_that_two_processes_begin_is_told_one_thing_and_counted_once(database: Database) -> None:
    fail(Lessons(database), RULE)
    with ThreadPoolExecutor(8) as threads:
        told = set(threads.map(lambda _: Lessons(database).brief("B", BUGS, words), range(16)))
    assert len(told) == 1
    assert Lessons(database).corrections()[0].applied == 1


def test_only_an_accepted_attempt_without_the_failure_went_well(lessons: Lessons) -> None:
    fail(lessons, RULE)
    run(lessons, "A", accepted=True)
    run(lessons, "A", accepted=True)
    run(lessons, "B", accepted=False)
    run(lessons, "C", accepted=True, again=True)
    lessons.brief("killed", BUGS, words)
    lessons.settle("never briefed", accepted=True)
    (row,) = lessons.corrections()
    assert (row.applied, row.ok, row.failed, row.seen, row.state) == (4, 1, 1, 4, "active")


def test_a_correction_that_does_not_help_is_retired_for_good(lessons: Lessons) -> None:
    fail(lessons, RULE)
    run(lessons, "A", accepted=False, again=True)
    run(lessons, "B", accepted=False, again=True)
    (row,) = lessons.corrections()
    assert (row.state, row.failed) == ("retired", 2)
    assert "2 attempts that were told failed so again, 0 went well" in row.reason
    fail(lessons, RULE, who="later")
    assert lessons.brief("C", BUGS, words) == ()


def test_a_correction_that_mostly_helps_survives_its_failures(lessons: Lessons) -> None:
    fail(lessons, RULE)
    for number in range(3):
        run(lessons, f"good {number}", accepted=True)
    for number in range(2):
        run(lessons, f"bad {number}", accepted=False, again=True)
    assert lessons.corrections()[0].state == "active"
    run(lessons, "bad 3", accepted=False, again=True)
    assert lessons.corrections()[0].state == "retired"


def test_after_five_successes_it_is_promoted_and_told_on_once(lessons: Lessons) -> None:
    fail(lessons, RULE)
    for number in range(PROMOTED_AFTER):
        assert lessons.untold() == []
        run(lessons, f"A-{number}", accepted=True)
    (row,) = lessons.untold()
    assert row.promoted_at is not None
    lessons.mark_told(row)
    assert lessons.untold() == []
    assert active(lessons) == [RULE.message]


def test_what_was_told_on_and_is_retired_later_has_to_be_taken_back_once(lessons: Lessons) -> None:
    fail(lessons, RULE)
    for number in range(PROMOTED_AFTER):
        run(lessons, f"A-{number}", accepted=True)
    (promoted,) = lessons.untold()
    retired = lessons.retire(promoted.id, "a person")
    lessons.mark_told(promoted)  # by a process that read it before
    assert [each.state for each in lessons.untold()] == ["retired"]
    lessons.mark_told(retired)
    lessons.retire(promoted.id, "a person, again")
    assert lessons.untold() == []


def test_a_briefing_waits_for_failures_of_its_kind_instead_of_holding_what_they_need(lessons: Lessons) -> None:
    names = [failure(name) for name in ("first", "second", "third")]
    for each in names:
        fail(lessons, each)
    briefed: list[Future[tuple[Shown, ...]]] = []
    with ThreadPoolExecutor(1) as pool:

        class Slow(list[Failure]):
            def __iter__(self) -> Iterator[Failure]:
                yield names[2]
                briefed.append(pool.submit(lessons.brief, "B", BUGS, words))
                time.sleep(0.5)
                yield names[0]

        lessons.note("A", BUGS, Slow())
        assert len(briefed[0].result(30)) == MOST_ACTIVE


def test_of_too_many_the_least_successful_goes_then_the_oldest_and_comes_back_when_it_is_needed(
    lessons: Lessons,
) -> None:
    names = [failure(name) for name in ("first", "second", "third", "fourth", "fifth")]
    fail(lessons, names[0])
    run(lessons, "A", accepted=True)
    for each in names[1:]:
        fail(lessons, each)
    assert active(lessons) == ["fifth failed", "fourth failed", "first failed"]
    told = lessons.brief("B", BUGS, words)
    assert len(told) == MOST_ACTIVE
    assert told[0].text.startswith("first failed")
    lessons.note("once more", BUGS, [names[1]])
    assert active(lessons) == ["fifth failed", "second failed", "first failed"]


def test_what_helped_an_attempt_in_the_end_is_kept_with_its_failures(lessons: Lessons) -> None:
    lessons.brief("T-0", BUGS, words)
    lessons.note("T-0", BUGS, [RULE])
    lessons.settle("T-0", accepted=True, remedy='return "{}".format(name)')
    fail(lessons, RULE)
    assert lessons.corrections()[0].remedy == 'return "{}".format(name)'


def test_messages_are_one_bounded_line_without_secrets(lessons: Lessons) -> None:
    secret = "ghp_" + "a1B2" * 9
    fail(lessons, Failure(pattern="p", message=f"bad\n\u2028\x1b[31m {secret} " + "x" * 1000))
    message = lessons.corrections()[0].message
    assert message.isprintable()
    assert len(message) <= MESSAGE_CHARS
    assert secret not in message


def test_a_person_can_retire_a_correction(lessons: Lessons) -> None:
    fail(lessons, RULE)
    (row,) = lessons.corrections()
    assert lessons.retire(row.id, "by a person").state == "retired"
    assert lessons.find(row.id).reason == "by a person"
    assert lessons.brief("B", BUGS, words) == ()
    with pytest.raises(ConfigError, match="lessons list"):
        lessons.retire(row.id + 1, "")


@pytest.mark.parametrize("number", [0, -1, 7, 2**63, 10**30])
def test_a_correction_that_is_not_there_is_an_error_that_says_so(lessons: Lessons, number: int) -> None:
    with pytest.raises(ConfigError, match="there is no correction"):
        lessons.find(number)
