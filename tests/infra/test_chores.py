"""Schedules as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.schemas.schedules import CronSchedule

from infra.chores import CHORES, checked_cron
from infra.errors import ConfigError
from infra.settings import Settings, parse_settings

GOOD = ["0 5 * * *", "*/15 * * * *", "0 5 * * mon-fri", "0 0 1,15 JAN *", "5-20/5 0-23 1-31 1-12 0-7", "0 5 * * 7"]
BAD = ["5 * * *", "0 5 * * * *", "61 5 * * *", "0 24 * * *", "0 5 0 * *", "0 5 * 13 *", "0 5 * * tues", "*/0 5 * * *",
       "0 5-3 * * *", "@daily", "", "0 5 * * mon;", "a b c d e", "0 -5 * * *"]  # fmt: skip


@pytest.mark.parametrize("cron", [*GOOD, *(chore.cron for chore in CHORES.values())])
def test_what_is_taken_prefect_takes_too(cron: str) -> None:
    assert CronSchedule(cron=checked_cron(cron)).cron == cron


@pytest.mark.parametrize("cron", BAD)
def test_what_is_no_schedule_is_refused_with_what_is_wrong(cron: str) -> None:
    with pytest.raises(ValueError, match="is no schedule"):
        checked_cron(cron)


def parsed(text: str) -> Settings:
    return parse_settings(text, "factory.yaml")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))


def test_a_chores_schedule_and_cap_can_be_edited_and_the_rest_stays_as_shipped() -> None:
    """W1"""
    text = (
        "housekeeping: {chores: {bug-hunter: {cron: 0 3 * * *}, test-gaps: {max_per_day: 1}, simplify: {cron: null}}}"
    )
    section = parsed(text).housekeeping
    assert [section.cron(name) for name in ("bug-hunter", "test-gaps", "simplify")] == ["0 3 * * *", "0 7 * * 2", None]
    assert [section.max_per_day(name) for name in ("bug-hunter", "test-gaps")] == [5, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("housekeeping:\n  chores:\n    bug-huntr: {}\n", ["line 3: housekeeping.chores.bug-huntr", "'bug-hunter'", "known here"]),
        ("housekeeping:\n  chores:\n    simplify:\n      cron: 0 25 * * *\n", ["line 4", "cron", "'25' is no hour (0 to 23"]),
        ("housekeeping: {board: issues}\n", ["housekeeping.board", "'issues' is not in `boards`"]),
        ("housekeeping: {enabled: true}\nboards: {a: {kind: folder, path: /a}, b: {kind: folder, path: /b}}\n",
         ["housekeeping", "several boards (a, b)", "`board`"]),
        ("repair: {board: issues, repository: works}\n",
         ["repair.board", "'issues' is not in `boards`", "repair.repository", "'works' is not in `repositories`"]),
        ("repair: {enabled: true}\nboards: {a: {kind: folder, path: /a}, b: {kind: folder, path: /b}}\n",
         ["repair", "several boards (a, b)", "`board`"]),
    ],
)  # fmt: skip
def test_mistakes_are_found_when_the_file_is_read(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
