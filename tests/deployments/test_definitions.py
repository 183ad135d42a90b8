"""THE table against a real Prefect server: applying it again, or a changed one, leaves exactly what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context

from deployments.definitions import CONTROL, apply_all, control_table, ensure_pool, ensure_triggers, node_table
from infra.fleet import pool_name
from infra.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture
def api(prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """The server's own API; Prefect's clients of this process talk to it, too."""
    with monkeypatch.context() as patch, httpx.Client(base_url=prefect_url, timeout=30) as client:
        patch.setenv("PREFECT_API_URL", prefect_url)
        refresh_global_settings_context()
        yield client
    refresh_global_settings_context()


def automations(api: httpx.Client) -> list[str]:
    return sorted(each["name"] for each in api.post("/automations/filter", json={}).raise_for_status().json())


async def test_applying_the_triggers_again_changes_nothing_and_mends_what_was_doubled(
    api: httpx.Client, settings: Settings
) -> None:
    """O2, SM10: one event starts one run, so there is one automation of each name."""
    targets = [each for each in control_table(settings) if each.name in ("dispatch", "steward", "refine")]
    ours = ["dispatch on webhook", "refine on dispatch", "steward on webhook"]
    async with get_client() as client:
        await ensure_pool(client, CONTROL, 4)
        await apply_all(client, CONTROL, targets, str(settings.root))
        for _ in range(2):
            await ensure_triggers(client)
            assert automations(api) == ours
        twice = api.post("/automations/filter", json={}).json()[0]
        api.post("/automations/", json={k: v for k, v in twice.items() if k not in ("id", "created", "updated")})
        assert len(automations(api)) == 4
        await ensure_triggers(client)
    assert automations(api) == ours


async def test_a_flow_that_was_taken_from_the_table_is_not_started_any_more(
    api: httpx.Client, settings: Settings
) -> None:
    """Housekeeping that was turned off would go on every night by the schedule it was given once."""
    pool = pool_name(f"n-{uuid4().hex[:8]}")
    table = [each._replace(pool=pool) for each in node_table("mini")[-2:]]
    async with get_client() as client:
        await ensure_pool(client, pool, 2)
        for wanted in (table, table[:1]):
            await apply_all(client, pool, wanted, str(settings.root))
            there = api.post("/deployments/filter", json={"work_pools": {"name": {"any_": [pool]}}}).json()
            assert {each["entrypoint"] for each in there} == {each.entrypoint for each in wanted}


@pytest.mark.slow
async def test_what_others_put_into_a_pool_of_ours_stays(api: httpx.Client, settings: Settings) -> None:
    """Many people's flows are in a file named flows.py; and no number of them hides what is left over of ours."""
    pool = pool_name(f"n-{uuid4().hex[:8]}")
    table = [each._replace(pool=pool) for each in node_table("mini")[-2:]]
    flow = api.post("/flows/", json={"name": "theirs"}).json()["id"]
    theirs = [("a", "flows.py:main", ["ticket"]), *((f"b{n:03}", "flows.mine.main", []) for n in range(200))]
    async with get_client() as client:
        await ensure_pool(client, pool, 2)
        await apply_all(client, pool, table, str(settings.root))
        for name, entrypoint, tags in theirs:
            body = {"name": name, "flow_id": flow, "entrypoint": entrypoint, "work_pool_name": pool, "tags": tags}
            api.post("/deployments/", json=body).raise_for_status()
        await apply_all(client, pool, table[:1], str(settings.root))
    asked = {"work_pools": {"name": {"any_": [pool]}}}
    assert api.post("/deployments/count", json=asked).json() == len(theirs) + 1


async def test_a_pool_whose_limit_was_changed_by_hand_gets_its_own_again(api: httpx.Client) -> None:
    name = pool_name(f"n-{uuid4().hex[:8]}")
    async with get_client() as client:
        await ensure_pool(client, name, 2)
        api.patch(f"/work_pools/{name}", json={"concurrency_limit": 0, "is_paused": True}).raise_for_status()
        await ensure_pool(client, name, 3)
    found = api.get(f"/work_pools/{name}").json()
    assert (found["concurrency_limit"], found["is_paused"]) == (3, False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)
