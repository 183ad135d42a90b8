"""`darkfactory run-unit` as a runner calls it: a real process, a real repository, a model behind a real HTTP port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.llm import ToolCall
from infra.llm.scripted import Answer, Fault, ScriptedModel, on
from tasks.actions import RunnerReport, RunnerUnit
from tasks.grants import ASK, EDITING, Grant
from tasks.models import Hooks, Policy
from tests.shop import FILES, git, make_repository

ROOT = Path(__file__).parents[2]
POLICY = Policy(test="python -m pytest -q", test_runner="pytest")
CODER = Grant(role="coder", tools=EDITING - {ASK}, writable=("*",), protected=POLICY.protected_paths, unit="T-1 u1")
TEST = {"tests/test_new.py": "from shop.prices import total\n\n\ndef test_new():\n    assert total([200], 10) == 180\n"}


def tool(name: str, **arguments: object) -> Answer:
    return Answer(tool_calls=(ToolCall(id=f"call-{name}", name=name, arguments=json.dumps(arguments)),))


FIX = tool(
    "edit_file", path="shop/prices.py", old="return sum(prices)", new="return sum(prices) * (100 - discount) / 100"
)
FINISH = tool("finish", explanation="The discount was never taken off.")


def checkout_of(tmp_path: Path) -> tuple[Path, str]:
    """A shallow checkout without a branch, as actions/checkout makes it."""
    origin = make_repository(tmp_path / "origin")
    sha = git(origin, "rev-parse", "HEAD").strip()
    (origin / "later.txt").write_text("x\n")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "--message", "Later")
    code = tmp_path / "code"
    code.mkdir()
    git(code, "init", "--quiet", "--template=", "--initial-branch=main")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(code, "fetch", "--quiet", "--depth=1", f"file://{origin}", sha)
    git(code, "checkout", "--quiet", "--detach", sha)
    assert git(code, "for-each-ref") == ""
    return code, sha


def unit(sha: str, **changes: Any) -> RunnerUnit:
    given: dict[str, Any] = {
        "id": "a" * 24, "base_sha": sha, "message": "T-1 u1", "model": "openai/scripted", "context_tokens": 8000,
        "steps": 10, "seconds": 60, "policy": POLICY, "grant": CODER, "prompt": "Do the unit.", "laid": TEST, "nonce": "n0nce", "seed": 0,
    }  # fmt: skip
    return RunnerUnit(**given | changes)


def run(tmp_path: Path, model: ScriptedModel, code: Path, told: RunnerUnit) -> tuple[int, RunnerReport, str, str]:
    """Exit code, report, patch and what was printed."""
    (tmp_path / "unit.json").write_text(told.model_dump_json())
    out = tmp_path / "out"
    arguments = ["run-unit", "--input", "unit.json", "--repository", "code", "--output", "out"]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
        "DARKFACTORY_HOME": str(tmp_path / "home"), "DARKFACTORY_MODEL_URL": model.openai_url,
        "DARKFACTORY_MODEL_KEY": "ghs_0123456789abcdefghij",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "deployments", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    assert sorted(path.name for path in out.iterdir()) == ["patch.diff", "report.json"], done.stderr
    report = RunnerReport.model_validate_json((out / "report.json").read_bytes())
    return done.returncode, report, (out / "patch.diff").read_text(), done.stderr


@pytest.mark.slow
def test_a_unit_becomes_a_patch_that_applies_and_a_report_with_usage(tmp_path: Path) -> None:
    """A7."""
    code, sha = checkout_of(tmp_path)
    with ScriptedModel([on("", tool("run_tests"), FIX, tool("run_tests"), FINISH)]) as model:
        exit_code, report, patch, said = run(tmp_path, model, code, unit(sha))
        requests = model.requests
    assert (exit_code, report.ending, report.explanation) == (0, "done", "The discount was never taken off."), said
    assert (report.steps, report.spent.calls) == (4, 4)
    assert report.spent.prompt_tokens > 0
    assert "tests/test_new.py" not in patch, "the tests it was given are not its work"
    git(code, "apply", str(tmp_path / "out" / "patch.diff"))
    assert (code / "shop" / "prices.py").read_text() == FILES["shop/prices.py"].replace(
        "return sum(prices)", "return sum(prices) * (100 - discount) / 100"
    )
    answers = [text for r in requests for text in [r.prompt]]
    assert "1 failed" in answers[1]
    assert "3 passed, 0 failed" in answers[-1], "the commands of the agent ran, in the sandbox"
    assert "ask_human" not in json.dumps([r.model_dump(mode="json") for r in requests]), "nobody is there to answer"
    assert "ghs_0123456789" not in said + patch + report.model_dump_json()


def test_earlier_work_deletions_renames_and_odd_bytes_are_in_the_patch_and_what_hooks_made_is_not(
    tmp_path: Path,
) -> None:
    code, sha = checkout_of(tmp_path)
    moved = tool(
        "run", command="git mv shop/prices.py shop/costs.py; printf '\\377\\000' > raw.bin; printf 'no end' > é.txt"
    )
    laid = {**TEST, "shop/given.py": "g = 1\n", "README.md": None}
    policy = POLICY.model_copy(update={"hooks": Hooks(after_create="echo made > made.txt")})
    with ScriptedModel([on("", moved, FINISH)]) as model:
        _, report, _, said = run(tmp_path, model, code, unit(sha, laid=laid, policy=policy))
    assert report.ending == "done", said
    git(code, "apply", "--index", str(tmp_path / "out" / "patch.diff"))
    changed = dict(line.split("\t")[::-1] for line in git(code, "-c", "core.quotePath=false", "diff", "--cached", "--name-status", "--no-renames").splitlines())  # fmt: skip
    assert changed == {
        "README.md": "D", "shop/given.py": "A", "shop/prices.py": "D", "shop/costs.py": "A", "raw.bin": "A", "é.txt": "A",
    }  # fmt: skip
    assert (code / "raw.bin").read_bytes() == b"\xff\0"


@pytest.mark.slow
def test_a_limit_per_minute_is_waited_for(tmp_path: Path) -> None:
    code, sha = checkout_of(tmp_path)
    with ScriptedModel([on("", Fault(kind="status", status=429, headers={"retry-after": "1"}), FIX, FINISH)]) as model:
        exit_code, report, patch, _ = run(tmp_path, model, code, unit(sha))
    assert (exit_code, report.ending) == (0, "done")
    assert "(100 - discount)" in patch


def test_a_limit_per_day_ends_the_unit_and_says_when_to_come_back(tmp_path: Path) -> None:
    """RB8: with the words and headers of GitHub Models."""
    code, sha = checkout_of(tmp_path)
    body = {"error": {"code": "RateLimitReached", "message": "Rate limit of 150 per 86400s exceeded for UserByModelByDay. Please wait 5631 seconds"}}  # fmt: skip
    fault = Fault(kind="status", status=429, headers={"retry-after": "5631"}, body=body)
    with ScriptedModel([on("", fault)]) as model:
        exit_code, report, patch, _ = run(tmp_path, model, code, unit(sha))
        assert len(model.requests) == 1
    assert (exit_code, report.ending, report.category, patch) == (3, None, "rate-limited", "")
    assert report.reset_at is not None
    assert timedelta(seconds=5000) < report.reset_at - datetime.now(UTC) <= timedelta(seconds=5631)


def test_another_commit_than_the_units_is_not_worked_on(tmp_path: Path) -> None:
    code, _ = checkout_of(tmp_path)
    with ScriptedModel([on("", FINISH)]) as model:
        exit_code, report, _, _ = run(tmp_path, model, code, unit("c" * 40))
        assert model.requests == []
    assert (exit_code, report.ending) == (2, None)
    assert "has no commit" in report.error


@pytest.mark.parametrize("text", ["{}", "not json", '{"version": 2}'])
def test_a_unit_of_another_version_says_what_to_do(tmp_path: Path, text: str) -> None:
    from deployments.runner import run_unit
    from infra.errors import ConfigError

    (tmp_path / "unit.json").write_text(text)
    with pytest.raises(ConfigError, match="same version"):
        run_unit(tmp_path / "unit.json", tmp_path, tmp_path / "out", lambda _: None)
    with pytest.raises(ConfigError, match="cannot be read"):
        run_unit(tmp_path / "none.json", tmp_path, tmp_path / "out", lambda _: None)
