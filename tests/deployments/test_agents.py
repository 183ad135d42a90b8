"""`darkfactory agents`: one line for each agent, and an exit code that says whether all can work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.agents import check_agents
from infra.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

AGENTS = {
    "mine": {"kind": "command", "program": "cat > task"},
    "gone": {"kind": "codex", "program": "/no/such/codex", "url": "http://127.0.0.1:9/v1"},
}


def test_each_agent_is_looked_at_whatever_the_others_lack(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "agents": AGENTS, "roles": {"coder": {"agent": "mine"}}})
    mine, gone = check_agents(settings)
    assert (mine.name, mine.coder, mine.exit_code, mine.message) == ("mine", True, 0, "command 'cat'")
    assert (gone.coder, gone.exit_code) == (False, 2)
    assert "npm install" in gone.message


def test_a_temporary_folder_behind_a_link_is_no_fault_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS: /var, with all temporary folders, is a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "link"))
    (mine,) = check_agents(Settings.model_validate({"home": tmp_path, "agents": {"mine": AGENTS["mine"]}}))
    assert (mine.exit_code, mine.message) == (0, "command 'cat'")


def test_the_command_prints_one_json_object(tmp_path: Path) -> None:

    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "DARKFACTORY_HOME": str(tmp_path / "home"),
        "DARKFACTORY_AGENTS": json.dumps(AGENTS),
    }
    command = [sys.executable, "-m", "deployments", "agents", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert [each["name"] for each in json.loads(done.stdout)["agents"]] == ["mine", "gone"]
