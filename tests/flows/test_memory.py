"""`consolidate_memory` as Prefect runs it: what it leaves for people to see, and one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")

from flows.memory import consolidate_memory
from infra.database import only_one
from infra.errors import CapacityUnavailable
from infra.memory.client import Memory
from tasks import consolidation, services
from tests.flows.conftest import _prefect  # noqa: F401  a fixture
from tests.infra.memory.serving import orders, serving
from tests.tasks.test_consolidation import CHECKOUT, told

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("_prefect"),
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def memory(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKFACTORY_MEMORY", json.dumps({"embedder": "bm25"}))
    services.close()
    with serving(orders(tmp_path)) as served:
        yield served
    services.close()


async def shown(key: str) -> str:
    """The newest artifact of a key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return str(max(found, key=lambda each: str(each.created)).data)


async def test_a_run_says_what_it_did_and_how_to_undo_it(memory: Memory) -> None:
    """M3."""
    told(memory, *CHECKOUT)
    rehearsed = await consolidate_memory(dry_run=True)
    assert rehearsed.plan is not None
    assert "Would be done: 3 new points" in await shown("memory-consolidation")
    done = await consolidate_memory()
    assert done.plan is not None
    assert [each.id for each in done.plan.written] == [each.id for each in rehearsed.plan.written]
    said = await shown("memory-consolidation")
    assert f"darkfactory memory revert {done.plan.id}" in said
    assert "extracted" in await shown("memory-consolidation-points")
    again = await consolidate_memory()
    assert again.plan is not None
    assert not again.plan.acts


async def test_memory_that_is_off_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()
    assert (await consolidate_memory()).skipped == "memory is turned off"
    assert not (tmp_path / "memory").exists()
    services.close()


async def test_there_is_one_at_a_time_here_and_among_machines_that_share_an_index(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with consolidation.alone():
        with pytest.raises(CapacityUnavailable, match="this machine"):
            async with consolidation.alone():
                pass
    monkeypatch.setattr(Memory, "shared", True)
    monkeypatch.setattr(consolidation, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(consolidation, "POLL_SECONDS", 0.05)
    with only_one(services.database(), consolidation.LOCK) as ours:
        assert ours
        with pytest.raises(CapacityUnavailable, match="another machine"):
            async with consolidation.alone():
                pass
        for undo in (consolidation.forget, consolidation.revert):
            with pytest.raises(CapacityUnavailable, match="another machine"):
                undo(memory, "6f0f2c7e-0d8c-4f0e-9a55-6c1f0b7a5d11")
    async with consolidation.alone():
        pass
