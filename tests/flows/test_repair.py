"""`repair_here`: from a failure in the ledger to a released change, with the ordinary agents in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.llm.scripted import ScriptedModel
from tasks import services
from tests.flows.conftest import _prefect  # noqa: F401  fixture
from tests.repairs import FIXED, Works
from tests.shop import script

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

ARCHITECT = json.dumps({"summary": "share() divides by zero.", "effort": 1})
CODER = f" `share`: nothing is shared.\n```python\n{FIXED}```"
TESTS = "```python\nfrom works.scale import share\n\ndef test_a_share_of_nothing():\n    assert share(1, 0) == 0.0\n```"


@pytest.fixture
def works(
    _prefect: None,  # noqa: F811
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Works]:
    made = Works(tmp_path, database_url)
    with ScriptedModel(script(architect=ARCHITECT, coder=CODER, tester=TESTS)) as model:
        given = {"DARKFACTORY_MODEL": "openai/scripted", "DARKFACTORY_MODEL_URL": model.openai_url,
                 "DARKFACTORY_MODEL_TIER": "small"}  # fmt: skip
        for name, value in {**made.environment, **given}.items():
            monkeypatch.setenv(name, value)
        services.close()
        yield made
        services.close()


@pytest.mark.slow
async def test_agents_mend_a_failure_that_recurs_and_their_change_is_released(works: Works) -> None:
    from flows.repair import repair_factory, repair_here

    works.succeed(3)
    works.fail(3)
    seen = await repair_here()
    repair = services.repairs().newest(1)[0]
    assert (seen.begun, repair.stage, repair.effort) == ((repair.id,), "watch", 1), repair.reason
    assert works.text("works/scale.py") == FIXED
    assert works.releases.current() == repair.new_sha
    works.succeed(4)
    assert (await repair_factory()).stages == {repair.id: "ended: kept 0% of 4 run(s) fail so, 50% of 6 did"}


async def test_nothing_is_looked_at_while_repairs_are_off(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.repair import repair_factory

    monkeypatch.setenv("DARKFACTORY_REPAIR", "{}")
    services.close()
    works.fail(3)
    assert (await repair_factory()).begun == ()
    assert services.repairs().newest() == []
