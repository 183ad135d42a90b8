"""The commands `darkfactory calibrate` and `darkfactory corpus`: what a person sees, and one JSON object with `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.__main__ import main
from deployments.definitions import control_table
from infra.database import open_database
from infra.objects import open_objects
from infra.settings import Settings, load_settings
from tests.made_up_runs import MadeUpRuns


@pytest.fixture
def made_up(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeUpRuns]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    with open_database(load_settings()) as database:
        made = MadeUpRuns(database)
        with database.transaction() as session:
            from infra.database import now

            made.at = now(session)
        yield made


def test_calibrate_shows_first_and_keeps_then(made_up: MadeUpRuns, capfd: pytest.CaptureFixture[str]) -> None:
    made_up.add(30, 12, repository="shop[bold]x")
    made_up.add(30, 29, level="strong")
    assert main(["calibrate", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "60 runs counted" in said
    assert "shop[bold]x" in said
    assert made_up.feedback.newest() is None
    assert main(["calibrate", "--json"]) == 0
    first = json.loads(capfd.readouterr().out)
    assert first["routes"][0]["level"] == "strong"
    assert main(["calibrate", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == first


def test_calibrate_says_what_got_worse(made_up: MadeUpRuns, capfd: pytest.CaptureFixture[str]) -> None:
    made_up.add(60, 60, days_ago=30)
    made_up.add(30, 0, days_ago=3)
    assert main(["calibrate"]) == 0
    assert "model usual got worse" in capfd.readouterr().out


def test_the_corpus_is_counted_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    assert main(["corpus"]) == 0
    assert "The corpus is empty." in capfd.readouterr().out
    line = json.dumps({"lesson": "l", "provenance": {"repository": "shop"}}).encode()
    open_objects(load_settings()).put("corpus/lessons/shop/a.jsonl", line)
    assert main(["corpus", "--json"]) == 0
    held = {"kind": "lessons", "repository": "shop", "examples": 1, "size": len(line)}
    assert json.loads(capfd.readouterr().out) == {"corpus": [held]}
    assert main(["corpus", "forget", "--repo", "shop"]) == 0
    assert "1 examples of shop" in capfd.readouterr().err
    assert main(["corpus", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"corpus": []}


def test_the_calibration_runs_once_a_day() -> None:
    (found,) = [d for d in control_table(Settings()) if d.name == "calibrate"]
    assert found.cron is not None
    assert found.cron.split()[2:] == ["*", "*", "*"]
