"""`darkfactory repair`: what it shows, and the way back that needs no database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.__main__ import main
from infra.database import open_database
from infra.releases import INSTALLED, Releases
from infra.repairs import Repairs, Sample, Signal
from infra.settings import Settings

OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    for sha in (OLD, NEW):
        (home / "releases" / sha).mkdir(parents=True)
    monkeypatch.setenv("DARKFACTORY_HOME", str(home))
    Releases(home).switch(OLD, INSTALLED)
    Releases(home).switch(NEW, OLD)
    return home


def test_a_rollback_by_hand_needs_no_database(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert main(["repair", "rollback", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["left"], said["now"]) == (NEW, OLD)
    assert "127.0.0.1" in said["problem"]
    assert Releases(home).current() == OLD
    assert main(["repair", "rollback", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["now"] == INSTALLED
    assert main(["repair", "rollback", "--json"]) == 2
    assert "nothing to roll back" in json.loads(capfd.readouterr().out)["error"]["message"]


def test_a_look_by_hand_says_that_repairs_are_off(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "now", "--json"]) == 2
    assert "repair.enabled" in json.loads(capfd.readouterr().out)["error"]["message"]


def test_a_rollback_by_hand_is_told_to_the_other_nodes_and_the_loop_can_be_resumed(
    home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    with open_database(Settings()) as database:
        repairs = Repairs(database)
        repairs.want(NEW, previous=OLD)
        repairs.runs("north", NEW)
        signal = Signal(signature="KeyError in [red]a[/red]", count=3, error="e")
        repair = repairs.begin(signal, Sample(), "works", "main", repairs.now())
        assert repair is not None
        repairs.enter(repair)
        repairs.advance(repair, "approval")
        assert main(["repair", "rollback"]) == 0
        assert (repairs.state().wanted, repairs.state().previous) == (OLD, OLD)
        assert main(["repair", "approve", str(repair.id)]) == 0
        assert repairs.find(repair.id).approved_by
        assert main(["repair", "approve", "77"]) == 2
        capfd.readouterr()
        assert main(["repair", "status", "--json"]) == 0
        status = json.loads(capfd.readouterr().out)
        assert (status["current"], status["releases"]["wanted"], status["enabled"]) == (OLD, OLD, False)
        assert status["repairs"][0]["signature"] == signal.signature
        assert [line["phase"] for line in status["journal"]] == ["before", "after"]
        assert main(["repair", "status"]) == 0
        assert "[red]a[/red]" in capfd.readouterr().out
        repairs._set(halted="stopped")
        assert main(["repair", "resume", "--json"]) == 0
        assert repairs.state().halted is None
