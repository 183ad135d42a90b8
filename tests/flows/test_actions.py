"""A whole ticket whose coder worked on a runner: dispatched, coded by the real script, fetched, measured here, published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.llm import ToolCall
from infra.llm.scripted import Answer, on
from tests.fakes.actions import FakeActions, FakeRun, zipped
from tests.flows.conftest import Factory
from tests.shop import git, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]


def tool(name: str, **arguments: object) -> Answer:
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


CODER = (
    tool("edit_file", path="shop/prices.py", old="return sum(prices)", new="return sum(prices) * (100 - discount) / 100"),
    tool("run_tests"),
    tool("finish", explanation="The discount was never taken off."),
)  # fmt: skip


class Runner:
    """Does what the workflow's steps do, on this machine."""

    def __init__(self, factory: Factory, folder: Path) -> None:
        self.factory, self.folder, self.said = factory, folder, ""

    def begin(self, run: FakeRun) -> None:
        run.looks = 100_000
        threading.Thread(target=self._work, args=(run,), daemon=True).start()

    def _work(self, run: FakeRun) -> None:
        place = self.folder / run.inputs["unit"]
        place.mkdir(parents=True)
        git(self.folder, "clone", "--quiet", str(self.factory.repository), str(place / "code"))
        git(place / "code", "checkout", "--quiet", "--detach", run.inputs["base"])
        (place / "unit.json").write_text(json.dumps(run.unit))
        arguments = ["run-unit", "--input", "unit.json", "--repository", "code", "--output", "unit"]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(place), "PYTHONPATH": str(ROOT), "DARKFACTORY_HOME": str(place / "home"),
            "DARKFACTORY_MODEL_URL": self.factory.model.openai_url, "DARKFACTORY_MODEL_KEY": "ghs_0123456789",
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "deployments", *arguments], cwd=place, env=environment,
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        self.said = done.stderr
        run.archive = zipped({name: (place / "unit" / name).read_bytes() for name in ("patch.diff", "report.json")})
        run.looks = 0


@pytest.mark.slow
async def test_a_ticket_is_solved_by_a_coder_on_a_runner(
    factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: only the patch comes from there; the evidence is measured here."""
    from tasks import actions, services

    runner = Runner(factory, tmp_path / "runners")
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(factory.repository), str(remote))
    with FakeActions(runner.begin) as fake:
        given = {"project": fake.project, "token": fake.token, "url": fake.url}
        section = given | {"model": "openai/scripted"}
        repository = {"path": str(factory.repository), "remote": str(remote), "github": given, "actions": section}
        monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps({"shop": repository}))
        monkeypatch.setattr(actions, "FIRST_POLL_SECONDS", 0.1)
        monkeypatch.setattr(actions, "LONGEST_POLL_SECONDS", 0.5)
        factory.forget()
        factory.model.rules = [on("Work in the checkout with the tools", *CODER), *script()]
        write_ticket(factory.board, "shop-1")

        from flows.ticket import work_ticket

        outcome = await work_ticket("shop-1", "shop")

        assert outcome.decision == "ACCEPT", (outcome.reasons, runner.said)
        assert outcome.evidence is not None
        assert outcome.evidence.fixed, "measured by our own runner"
        assert len(fake.workflow_runs) == 1
        assert "(100 - discount) / 100" in git(remote, "show", "agent/shop-1:shop/prices.py")
        assert services.runner_jobs().used(fake.project).requests == len(CODER)
        assert factory.history("shop-1").usage_by_role["coder"].calls == len(CODER)
    assert factory.leftovers() == []
