"""A memory whose owner is a thread of the test: the same code as the process, without the seconds it takes to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from infra.memory import Record
from infra.memory.client import Memory
from infra.memory.owner import Orders, serve

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def record(text: str = "Gradle build needs JDK 17, not 21", **more: Any) -> Record:
    return Record(**{"kind": "lesson", "text": text, "scope": "shop", "created_at": NOW, **more})


def orders(folder: Path, **more: Any) -> Orders:
    return Orders(**{"folder": folder / "memory", "embedder": "bm25", "idle_seconds": 120.0, **more})


@contextmanager
def serving(given: Orders, kind: type[Memory] = Memory) -> Iterator[Memory]:
    memory = kind(given, 30.0)
    thread = Thread(target=serve, args=(given,), daemon=True)
    thread.start()
    try:
        memory.health(30.0)
        yield memory
    finally:
        memory.stop()
        thread.join(30)
        assert not thread.is_alive()
