"""The commands `darkfactory memory`: what a person sees, and one JSON object with `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployments.__main__ import main
from infra.memory import Record
from infra.memory.client import open_memory
from infra.settings import load_settings


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The id of the one point of this home."""
    pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_MEMORY", '{"embedder": "bm25", "idle_seconds": 60}')
    memory = open_memory(load_settings())
    text = "Gradle build needs JDK 17 [bold]not 21[/bold]"
    yield memory.record(Record(kind="lesson", text=text, scope="shop", created_at=datetime.now(UTC))).id
    memory.stop()


def test_search_show_and_rebuild_say_what_is_there(point: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "search", "android build", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["found"]
    assert found["point"]["id"] == point
    assert main(["memory", "search", "android build", "--repo", "other"]) == 0
    assert "Nothing fits." in capfd.readouterr().out
    assert main(["memory", "show", point]) == 0
    assert "[bold]not 21[/bold]" in capfd.readouterr().out
    assert main(["memory", "show", point, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["record"]["scope"] == "shop"
    assert main(["memory", "rebuild", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"points": 1}
    assert main(["memory", "show", "6f0f2c7e-0d8c-4f0e-9a55-6c1f0b7a5d11"]) == 2
    assert "memory search" in capfd.readouterr().err


def test_a_point_is_forgotten_and_bad_names_say_what_to_do(point: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "forget", point, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"forgotten": [point]}
    assert main(["memory", "search", "android build"]) == 0
    assert "Nothing fits." in capfd.readouterr().out
    assert main(["memory", "forget", "6f0f2c7e-0d8c-4f0e-9a55-6c1f0b7a5d11"]) == 2
    assert "memory search" in capfd.readouterr().err
    assert main(["memory", "revert", "20261101T000000-abcdef"]) == 2
    assert "there is no consolidation" in capfd.readouterr().err
    for name in ("nope", "ab\udcff"):
        for command in ("forget", "show"):
            assert main(["memory", command, name]) == 2
            assert "memory has no point" in capfd.readouterr().err
    assert main(["memory", "search", "ab\udcff", "--repo", "ab\udcff"]) == 0


def test_memory_that_is_turned_off_says_how_to_turn_it_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    assert main(["memory", "search", "anything", "--json"]) == 2
    assert "memory.enabled" in json.loads(capfd.readouterr().out)["error"]["message"]
