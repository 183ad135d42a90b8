"""The commands `darkfactory lessons`: what a person sees, and one JSON object with `--json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.__main__ import main
from infra.database import open_database
from infra.lessons import Failure, Kind, Lessons
from infra.settings import Settings


@pytest.fixture
def correction(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The id of the one correction of this home."""
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    failure = Failure(
        pattern="broken AssertionError: test_house", message="test_house failed: [bold]write cents(x)[/bold]"
    )
    with open_database(Settings(database_url=database_url)) as database:
        lessons = Lessons(database)
        for number in range(3):
            lessons.note(f"T-{number}", Kind(repository="shop", intent="bug", effort=1), [failure])
        return lessons.corrections()[0].id


def test_list_show_and_retire_say_what_is_there(correction: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lessons", "list", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["corrections"]
    assert (found["id"], found["seen"], found["state"]) == (correction, 3, "active")
    assert main(["lessons", "list", "--repo", "other"]) == 0
    assert "No corrections." in capfd.readouterr().out
    assert main(["lessons", "list", "--repo", "ab\udcff"]) == 0
    assert main(["lessons", "show", str(correction)]) == 0
    assert "[bold]write cents(x)[/bold]" in capfd.readouterr().out
    assert main(["lessons", "retire", str(correction)]) == 0
    assert "is retired" in capfd.readouterr().out
    assert main(["lessons", "list"]) == 0
    assert "No corrections." in capfd.readouterr().out
    assert main(["lessons", "list", "--all", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["corrections"][0]["reason"] == "retired by a person"


def test_a_correction_that_is_not_there_is_an_error_that_says_where_to_look(
    correction: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["lessons", "show", str(correction + 1), "--json"]) == 2
    assert "lessons list" in json.loads(capfd.readouterr().out)["error"]["message"]
