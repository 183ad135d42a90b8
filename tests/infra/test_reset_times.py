"""Reset times in the words of agents and providers (RB8: a provider rests until the parsed reset time)."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest

from infra.llm.errors import ErrorBody, reset_time
from infra.reset_times import JUST_NOW, LONGEST_WAIT, after_seconds, from_epoch, parse_reset, retry_after

NOW = datetime(2026, 10, 3, 12, 0, tzinfo=UTC)  # a Saturday


def utc(month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, month, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a time of day
        ("You've hit your 5-hour limit · resets 6:07am (UTC)", utc(10, 4, 6, 7)),
        ("You've hit your limit · resets 4am (America/Chicago)", utc(10, 4, 9)),
        ("Session limit reached ∙ resets 3:30pm", utc(10, 3, 15, 30)),
        (
            "You’ve hit your limit for Claude messages. Limits will reset at 9:30 AM.  View your usage",
            utc(10, 4, 9, 30),
        ),
        ("usage limit reached. Your limit will reset at 3pm (America/Bogota).", utc(10, 3, 20)),
        ("You’ve hit your usage limit. Upgrade to Pro or try again at 6:08 AM.", utc(10, 4, 6, 8)),
        ("purchase more credits or try again at 4:05 PM.", utc(10, 3, 16, 5)),
        ("resets at 15:30 UTC", utc(10, 3, 15, 30)),
        ("resets 12am (UTC)", utc(10, 4)),
        ("resets 12pm (Asia/Tokyo)", utc(10, 4, 3)),
        ("resets 12:30 p.m. (UTC)", utc(10, 3, 12, 30)),
        ("You've hit your weekly limit · resets Mon 12:00am", utc(10, 5)),
        ("resets Saturday at 11am (UTC)", utc(10, 10, 11)),
        # a date
        ("resets Oct 6, 2pm (Europe/Paris)", utc(10, 6, 12)),
        ("resets Oct 5 at 9pm (America/New_York)", utc(10, 6, 1)),
        ("resets Oct 6 (UTC)", utc(10, 6)),
        ("or try again at Oct 9th, 2026 9:30 AM.", utc(10, 9, 9, 30)),
        ("or try again at Oct 10, 2026, 11:12 AM.", utc(10, 10, 11, 12)),
        ("You will regain access on 2026-10-08 at 00:00 UTC", utc(10, 8)),
        ("You will regain access on 2026-10-08.", utc(10, 8)),
        ("resets at 2026-10-04T06:30:00Z", utc(10, 4, 6, 30)),
        ('"resets_at": "2026-10-04T06:30:00.123+02:00"', utc(10, 4, 4, 30)),
        ("anthropic-ratelimit-tokens-reset: 2026-10-03T12:00:07Z", utc(10, 3, 12, 0, 7)),
        ("Retry-After: Sat, 03 Oct 2026 12:05:00 GMT", utc(10, 3, 12, 5)),
        # a duration
        ("try again in 3h 2m", utc(10, 3, 15, 2)),
        ("try again in 5 days 3 hours", utc(10, 8, 15)),
        ("Try again in 4 days 20 hours 9 minutes.", utc(10, 8, 8, 9)),
        ("try again in 5 days 22 hours 11\nminutes.", utc(10, 9, 10, 11)),
        ("resets in 1d 5h", utc(10, 4, 17)),
        ("resets in 45m", utc(10, 3, 12, 45)),
        ("try again in 2 hours", utc(10, 3, 14)),
        ("try again in 2 hours and 5 minutes", utc(10, 3, 14, 5)),
        ("Please try again in 8s.", utc(10, 3, 12, 0, 8)),
        ("Please wait 5631 seconds before retrying", utc(10, 3, 13, 33, 51)),
        ("Please retry in 31.0s.", utc(10, 3, 12, 0, 31)),
        ('"retryDelay": "31s"', utc(10, 3, 12, 0, 31)),
        ("Retry-After: 30", utc(10, 3, 12, 0, 30)),
        ("retry-after: 24367", utc(10, 3, 18, 46, 7)),
        ("retry-after-ms: 2000", utc(10, 3, 12, 0, 2)),
        ("retry_after=30.", utc(10, 3, 12, 0, 30)),
        # a Unix time
        (f"Claude AI usage limit reached|{int(utc(10, 3, 17).timestamp())}", utc(10, 3, 17)),
        (f'"resetsAt":{int(utc(10, 3, 17).timestamp())},', utc(10, 3, 17)),
        (f'"resets_at":{int(utc(10, 3, 17).timestamp())}000', utc(10, 3, 17)),
        (f'"resets_at":{int(utc(10, 3, 17).timestamp())},"resets_in_seconds":18000', utc(10, 3, 17)),
        (f"x-ratelimit-reset: {int(utc(10, 3, 17).timestamp())}", utc(10, 3, 17)),
    ],
)
def test_a_message_names_its_reset(text: str, expected: datetime) -> None:
    """RB8."""
    assert parse_reset(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "This request would exceed your account's rate limit. Please try again later.",
        "exceeded retry limit, last status: 429 Too Many Requests",
        "the test resets 4 counters",
        "resets the 3pm job",
        "2026-10-04T06:30:00Z ERROR rate limited",
        "at 4:05 PM",
        "resets 25:00",
        "resets 13pm",
        "resets Feb 31, 2pm",
        "try again in 999999999 days",
        "Retry-After: soon",
        "resets_at: true",
    ],
)
def test_a_message_without_a_reset_has_none(text: str) -> None:
    assert parse_reset(text, NOW) is None


@pytest.mark.parametrize(
    "text",
    [
        "You will regain access on 2026-12-01 at 00:00 UTC",
        "resets Oct 1, 2pm (UTC)",  # past: the next one is in a year
        "try again at Sep 3rd, 2026 4:14 PM",
        "try again in 9 days",
        "Claude AI usage limit reached|1759500000",  # a year ago
        "Claude AI usage limit reached|9999999999",
        "Retry-After: 99999999",
    ],
)
def test_an_implausible_reset_is_none(text: str) -> None:
    """Nothing silences a provider for weeks because of a misread number: the caller falls back to its hourly probe."""
    assert parse_reset(text, NOW) is None


def test_a_reset_that_passed_within_the_last_minute_is_now_and_not_tomorrow() -> None:
    assert parse_reset("resets 12pm (UTC)", NOW + timedelta(seconds=40)) == NOW + timedelta(seconds=40)
    assert parse_reset("resets 12pm (UTC)", NOW + timedelta(seconds=90)) == NOW + timedelta(days=1)


def test_the_last_of_several_resets_counts() -> None:
    """The tail of an output may hold waits that the agent overcame."""
    text = "retrying, try again in 5s\nYou've hit your limit · resets 4pm (UTC)\n/upgrade, or try again later"

    assert parse_reset(text, NOW) == utc(10, 3, 16)


def test_without_a_zone_the_clock_is_that_of_now() -> None:
    assert parse_reset("resets 3pm", NOW.astimezone(ZoneInfo("America/Chicago"))) == utc(10, 3, 20)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "PST", "America", "///", "Europe/Paris/../Paris"])
def test_an_unknown_zone_is_read_as_utc_and_still_waits(zone: str) -> None:

    assert parse_reset(f"resets 3pm ({zone})", NOW) == utc(10, 3, 15)


def test_a_date_without_a_year_may_be_in_the_next_one() -> None:
    now = datetime(2026, 12, 30, 20, tzinfo=UTC)

    assert parse_reset("resets Jan 2, 9am (UTC)", now) == datetime(2027, 1, 2, 9, tzinfo=UTC)


def test_the_29th_of_february_is_found_in_a_leap_year() -> None:
    assert parse_reset("resets Feb 29, 9am (UTC)", datetime(2028, 2, 27, tzinfo=UTC)) == datetime(
        2028, 2, 29, 9, tzinfo=UTC
    )


ZONES = sorted(zone for zone in available_timezones() if "/" in zone)
CHANGES = [datetime(2026, 3, 8), datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 11, 1)]
"""When clocks change: America in spring, Europe in spring and autumn, America in autumn."""


def stepped(now: datetime, zone: ZoneInfo, hour: int, minute: int) -> datetime | None:
    """The same by brute force: the first minute from `now` on at which the clocks of the zone show the time."""
    moment = now.replace(second=0, microsecond=0)
    for _ in range(26 * 12):
        shown = moment.astimezone(zone)
        if (shown.hour, shown.minute) == (hour, minute):
            return moment
        moment += timedelta(minutes=5)
    return None


@pytest.mark.parametrize("seed", range(6))
def test_a_time_of_day_is_its_next_occurrence_in_every_zone_and_at_every_change_of_clocks(seed: int) -> None:
    """RB8: daylight saving is right to the minute, on both changes."""
    chance = random.Random(seed)
    for zone in chance.sample(ZONES, 60):
        now = (chance.choice(CHANGES) + timedelta(minutes=5 * chance.randrange(-350, 350))).replace(tzinfo=UTC)
        hour, minute = chance.choice([0, 1, 2, 3, chance.randrange(24)]), 15 * chance.randrange(4)
        text = f"resets {hour % 12 or 12}:{minute:02}{'pm' if hour >= 12 else 'am'} ({zone})"
        found = parse_reset(text, now)
        expected = stepped(now, ZoneInfo(zone), hour, minute)
        shown = found.astimezone(ZoneInfo(zone)) if found else None
        if shown and (shown.hour, shown.minute) == (hour, minute):
            assert found == expected, (text, now)
        else:  # the clocks skip this time: the moment is as long after midnight as if they did not
            assert found is not None
            assert shown is not None
            assert (
                timedelta(0)
                < shown.replace(tzinfo=None) - shown.replace(hour=hour, minute=minute, tzinfo=None)
                <= timedelta(hours=1)
            ), (text, now)


def test_a_time_that_is_shown_twice_is_the_next_of_the_two() -> None:
    first, second = utc(11, 1, 6, 30), utc(11, 1, 7, 30)  # 1:30 in Chicago, before and after the change

    assert parse_reset("resets 1:30am (America/Chicago)", first - timedelta(hours=2)) == first
    assert parse_reset("resets 1:30am (America/Chicago)", first + timedelta(minutes=10)) == second
    assert parse_reset("resets 1:30am (America/Chicago)", second + timedelta(minutes=10)) == utc(11, 2, 7, 30)


def test_a_time_that_is_skipped_is_an_hour_later_on_that_day() -> None:
    assert parse_reset("resets 2:30am (America/Chicago)", utc(3, 8, 5)) == utc(3, 8, 8, 30)


def test_a_result_is_always_within_the_bounds_and_in_utc() -> None:
    chance = random.Random(7)
    words = [
        "resets",
        "at",
        "in",
        "try again",
        "3pm",
        "(UTC)",
        "Oct",
        "31",
        "5 days",
        "2026-10-04",
        "|",
        "Retry-After:",
    ]
    words += ["1791029000", "Feb", "29", ",", "12:00", "Mon", "99h", "ms", "limit reached|", "(Asia/Tokyo)", "am", "0"]
    for _ in range(5000):
        text = " ".join(chance.choices(words, k=8))
        found = parse_reset(text, NOW)
        assert found is None or (NOW <= found <= NOW + LONGEST_WAIT and found.tzinfo is UTC), text


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["resets ", "try again in 1h ", "resets Oct 6, ", "1 2 3 ", "retry after ", "9" * 50])
def test_hostile_text_takes_no_time(piece: str) -> None:
    parse_reset(piece * 200_000, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "Please try again in 8s.",
        "Please try again in 1m26.4s.",
        "Please wait 5631 seconds",
        "try again in 2 hours",
        "Please retry in 20ms",
        "resets in 45m",
        "You will regain access on 2026-10-08 at 00:00 UTC",
    ],
)
def test_it_reads_what_the_clients_of_model_apis_read(text: str) -> None:
    """Two readers of the same words must agree as long as there are two."""
    assert parse_reset(text, NOW) == reset_time({}, ErrorBody(message=text), NOW)


def test_numbers_of_structured_fields_have_the_same_bounds() -> None:
    soon = NOW + timedelta(hours=1)

    assert from_epoch(soon.timestamp(), NOW) == from_epoch(int(soon.timestamp()) * 1000, NOW) == soon
    assert after_seconds(3600, NOW) == soon
    assert [from_epoch(value, NOW) for value in (None, True, "1759700000", 30, 9_999_999_999, float("nan"))] == [
        None
    ] * 6
    assert [after_seconds(value, NOW) for value in (None, True, "30", -1, 1e12, float("nan"))] == [None] * 6
    assert from_epoch((NOW - JUST_NOW * 2).timestamp(), NOW) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("90", NOW + timedelta(seconds=90)),
        (" 1.5 ", NOW + timedelta(seconds=1.5)),
        ("Sat, 03 Oct 2026 12:20:00 GMT", NOW + timedelta(minutes=20)),
        ("Sat, 03 Oct 2026 14:20:00 +0200", NOW + timedelta(minutes=20)),
        ("Sat, 03 Oct 2026 11:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -1200", None),
        ("999999999", None),
        ("-1", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_a_retry_after_header_is_seconds_or_a_date_or_nothing(header: str | None, expected: datetime | None) -> None:
    found = retry_after(header, NOW)
    assert (found, found and found.tzinfo) == (expected, expected and UTC)
