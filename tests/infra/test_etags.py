"""Answers that are kept for later processes: few, bounded, and never a reason to fail."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from infra import etags
from infra.etags import Etags, Kept

KEPT = Kept(etag='"1"', link="", text="[]")


def test_the_answers_that_were_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etags, "_MOST_ANSWERS", 6)
    kept = Etags(tmp_path)
    for number in range(6):
        kept.put(f"q{number}", KEPT)
        os.utime(kept._path(f"q{number}"), (number, number))
    assert kept.get("q0") == KEPT, "asking for it makes it the newest"
    kept.put("q6", KEPT)
    assert [n for n in range(7) if kept.get(f"q{n}")] == [0, 3, 4, 5, 6]


def test_a_huge_answer_is_not_kept(tmp_path: Path) -> None:
    Etags(tmp_path).put("q", KEPT.model_copy(update={"text": "x" * 1_000_001}))
    assert Etags(tmp_path).get("q") is None


def test_a_place_that_cannot_be_written_only_costs_calls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        Etags(tmp_path / "file").put("q", KEPT)
    assert "outcome=not-kept" in caplog.text
    assert Etags(tmp_path / "file").get("q") is None
