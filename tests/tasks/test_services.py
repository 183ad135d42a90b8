"""What the opened services add to what they open."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.sandbox import Limits, Unsandboxed
from tasks import progress, services


@pytest.mark.parametrize("listened", [False, True])
async def test_only_a_command_that_nobody_listens_to_may_be_silent(
    listened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC1: an agent shows that it gets on by what it prints; a test run is given its time limit."""
    monkeypatch.setattr(progress, "_last", progress.time.monotonic() - 1000)
    idle: list[float] = []
    heard: list[bytes] = []

    class Watched(Unsandboxed):
        async def run(self, command: object, **options: object) -> object:  # type: ignore[override]
            idle.append(progress.idle_seconds())
            return await super().run(command, **options)  # type: ignore[arg-type]

    announced = services._Announced(Watched(Limits()))
    listener = heard.append if listened else None
    await announced.run("echo said", worktree=tmp_path, timeout_seconds=100, on_output=listener)
    assert (idle[0] > 999) is listened
    assert progress.idle_seconds() < 10
    assert b"".join(heard) == (b"said\n" if listened else b"")
