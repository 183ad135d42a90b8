"""The shipped workflow: no secrets, few rights, pinned actions, and nothing of a dispatch in a script."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from infra.actions import JOB_MINUTES, artifact_name, run_title, workflow_text
from infra.actions.archive import PATCH, REPORT
from infra.errors import ConfigError
from infra.sections import ActionsSection

PACKAGE = "git+https://github.com/acme/darkfactory@0123456789012345678901234567890123456789"


@pytest.fixture
def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(workflow_text(PACKAGE))
    return loaded


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    (job,) = workflow["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_scripts_hold_no_expression_at_all(workflow: dict[str, Any]) -> None:
    scripts = [step["run"] for step in steps(workflow) if "run" in step]
    assert len(scripts) == 2
    assert [script for script in scripts if "${{" in script] == []


def test_no_input_is_shown_in_a_log_by_standing_in_an_environment(workflow: dict[str, Any]) -> None:
    """The log of a public repository is public, and it lists each step's environment."""
    given = [str(step.get("env", {})) for step in steps(workflow)]
    assert "inputs." not in "".join([*given, str(workflow.get("env")), str(workflow["jobs"]["unit"].get("env"))])


def test_it_has_few_rights_no_secrets_and_an_end(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read", "models": "read"}
    assert "secrets." not in workflow_text(PACKAGE)
    assert workflow["jobs"]["unit"]["timeout-minutes"] == JOB_MINUTES
    assert "permissions" not in workflow["jobs"]["unit"]
    assert (
        next(step for step in steps(workflow) if "checkout" in step.get("uses", ""))["with"]["persist-credentials"]
        is False
    )


def test_actions_are_pinned_to_commits() -> None:
    used = re.findall(r"uses: (\S+)( # v[\d.]+)?$", workflow_text(PACKAGE), re.MULTILINE)
    assert len(used) == 3
    assert [name for name, remark in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) or not remark] == []


def test_it_is_what_the_client_counts_on(workflow: dict[str, Any]) -> None:
    trigger = workflow[True]["workflow_dispatch"]  # YAML reads `on` as true
    assert set(trigger["inputs"]) == {"unit", "repository", "base", "payload"}
    unit = "${{ inputs.unit }}"
    assert workflow["run-name"] == run_title(unit)
    assert workflow["concurrency"] == {"group": f"darkfactory-unit-{unit}", "cancel-in-progress": False}
    upload = steps(workflow)[-1]
    assert (upload["if"], upload["with"]["name"]) == ("always()", artifact_name(unit))
    assert re.findall(r"\S+/(\S+)$", upload["with"]["path"], re.MULTILINE) == [PATCH, REPORT]
    assert ActionsSection.model_fields["workflow"].default == "darkfactory-unit.yml"


def test_what_is_installed_is_a_value_and_never_a_script(workflow: dict[str, Any]) -> None:
    install = next(step for step in steps(workflow) if step.get("name") == "Install")
    assert install["env"]["PACKAGE"] == PACKAGE
    tricky = 'darkfactory @ https://example.com/x.whl#"; echo "$(id)'
    again = yaml.safe_load(workflow_text(tricky))
    assert steps(again)[2]["env"]["PACKAGE"] == tricky


@pytest.mark.parametrize("package", ["", "-r other.txt", "a\nb", "x${{ secrets.TOKEN }}", "x" * 600])
def test_an_impossible_requirement_is_refused(package: str) -> None:
    with pytest.raises(ConfigError, match="cannot be installed by pip"):
        workflow_text(package)
