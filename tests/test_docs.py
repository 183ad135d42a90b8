"""The documentation says what is there: settings, commands, links, the test command, the tree; and the notebook runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from deployments.__main__ import app
from deployments.snapshot import ClaimedWork, Limits, Snapshot
from infra import sections
from infra.boards import Ticket
from infra.database import Database
from infra.errors import WorkFailed
from infra.fleet import Node
from infra.ledger import Ledger, TicketRow, Totals
from infra.llm import Usage
from infra.pauses import Pause
from infra.postgres import open_databases
from infra.sections import (
    ActionsSection,
    AgentSection,
    AnyBoard,
    BudgetsSection,
    ChoreSection,
    DispatchSection,
    FolderBoardSection,
    GitHubBoardSection,
    GitHubForgeSection,
    HousekeepingSection,
    JiraBoardSection,
    LearningSection,
    LinearBoardSection,
    MemorySection,
    ModelSection,
    NotifySection,
    OperationsSection,
    PlaybooksSection,
    RepairSection,
    RepositorySection,
    RoleSection,
    States,
    StewardSection,
    StrongModelSection,
    WebhooksSection,
)
from infra.settings import Settings
from tasks.models import Evidence, Hooks, Outcome, Policy, PullRequest, TestReport
from tasks.policy import render_workflow

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTEBOOK = ROOT / "notebooks" / "ledger.ipynb"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Markdown without code, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names forges give to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by the name in backquotes that they begin with."""
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("| ").strip("`"): row for row in cells}


def shown(default: object) -> str:
    """A setting's default as the table words it."""
    match default:
        case None:
            return "none"
        case BaseModel():
            return "see below"
        case tuple():
            return f"`[{', '.join(each if isinstance(each, str) else f'{each:g}' for each in default)}]`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_with_its_environment_name_and_default(name: str) -> None:
    documented = rows(part(page("docs/configuration.md"), "Settings"))
    assert documented[name][1:3] == [f"`DARKFACTORY_{name.upper()}`", shown(Settings.model_fields[name].default)]


SECTIONS: dict[str, type[BaseModel]] = {
    "Boards": AnyBoard,
    "States": States,
    "Folder": FolderBoardSection,
    "GitHub": GitHubBoardSection,
    "Linear": LinearBoardSection,
    "Jira": JiraBoardSection,
    "Repositories": RepositorySection,
    "Pull requests on GitHub": GitHubForgeSection,
    "Dispatch": DispatchSection,
    "Notify": NotifySection,
    "Webhooks": WebhooksSection,
    "Steward": StewardSection,
    "Strong": StrongModelSection,
    "Agents": AgentSection,
    "Budgets": BudgetsSection,
    "Memory": MemorySection,
    "Learning": LearningSection,
    "Playbooks": PlaybooksSection,
    "Operations": OperationsSection,
    "Repair": RepairSection,
    "Housekeeping": HousekeepingSection,
    "Chores": ChoreSection,
    "Models by name": ModelSection,
    "Roles": RoleSection,
    "GitHub Actions": ActionsSection,
}
"""Headings of docs/configuration.md, and the section each one is about."""


def part(text: str, heading: str) -> str:
    """What stands between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def fields_of(section: type[BaseModel]) -> dict[str, str]:
    """A section's own names with their defaults as the tables word them."""
    shared = {"kind", *AnyBoard.model_fields} if issubclass(section, AnyBoard) and section is not AnyBoard else set()
    return {
        name: "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        for name, field in section.model_fields.items()
        if name not in shared
    }


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_name_of_a_section_is_documented_with_its_default_and_no_other(heading: str) -> None:
    documented = {name: row[1] for name, row in rows(part(page("docs/configuration.md"), heading)).items()}
    known = fields_of(SECTIONS[heading])
    for names in (documented, known):
        names.pop("kind", None)  # what tells the boards apart is a field of theirs alone
    assert documented == known


def test_every_section_of_the_settings_is_documented() -> None:
    """A new section needs a heading of its own, and a line in SECTIONS."""
    kinds = {each for each in vars(sections).values() if isinstance(each, type) and issubclass(each, sections.Section)}
    assert {kind.__name__ for kind in kinds - {sections.Section}} == {kind.__name__ for kind in SECTIONS.values()}


def test_no_setting_is_documented_that_does_not_exist() -> None:
    named = set(re.findall(r"DARKFACTORY_([A-Z_]+)", "\n".join(map(page, (str(p.relative_to(ROOT)) for p in PAGES)))))
    assert {name.lower() for name in named} - Settings.model_fields.keys() <= {"config", "bench_home"}


@pytest.mark.parametrize("name", sorted(Policy.model_fields))
def test_every_key_of_a_repositorys_policy_is_documented(name: str) -> None:
    assert name in rows(page("docs/workflow-file.md"))


@pytest.mark.parametrize("name", sorted(Hooks.model_fields))
def test_every_hook_is_documented(name: str) -> None:
    assert rows(part(page("docs/workflow-file.md"), "Hooks"))[name][1] == shown(Hooks.model_fields[name].default)


def test_every_variable_of_a_template_is_documented() -> None:
    ticket = Ticket(key="T-1", title="t", body="b", state="todo")
    with pytest.raises(WorkFailed) as caught:
        render_workflow("{{ unknown }}", ticket, 1)
    known = re.findall(r"issue\.\w+|attempt", str(caught.value))
    assert len(known) > 10
    assert [name for name in known if f"`{name}`" not in page("docs/workflow-file.md")] == []


@pytest.mark.parametrize(
    "model",
    [Outcome, Evidence, PullRequest, TestReport, Usage, Snapshot, Limits, ClaimedWork, Totals, Pause, Node, TicketRow],
    ids=lambda model: model.__name__,
)
def test_every_field_of_the_json_answers_is_documented(model: type[BaseModel]) -> None:
    text = page("docs/operations.md")
    assert [name for name in model.model_fields if f"`{name}`" not in text] == []


def commands() -> dict[str, list[str]]:
    """The command line's commands with their options; `node` has those of its own commands."""
    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    return {
        name: [o for p in parameters(command) for o in p.opts if o.startswith("--")] for name, command in found.items()
    }


def parameters(command: Any) -> list[Any]:
    """The parameters of a command and of those below it."""
    return [*command.params, *(p for below in getattr(command, "commands", {}).values() for p in parameters(below))]


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_is_documented(name: str) -> None:
    text = page("docs/operations.md") + page("docs/nodes.md")
    assert f"| `darkfactory {name}" in text
    assert [option for option in commands()[name] if option not in text] == []


def test_no_command_is_documented_that_does_not_exist() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    named = set(re.findall(r"(?:`|bin/|^)darkfactory ([a-z]+)(?: ([a-z]+)\b)?", text, re.MULTILINE))
    below = set(typer.main.get_command(app).commands["node"].commands)  # type: ignore[attr-defined]  # a group
    assert {name for name, _ in named} <= commands().keys()
    assert {word for name, word in named if name == "node" and word} <= below


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = set(
        re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)$", "\n".join(map(page, ("README.md", "CONTRIBUTING.md"))), re.M)
    )
    assert {one or other for one, other in named} <= targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))
    broken = []
    for link in (each for each in links if "://" not in each):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_continuous_integration_runs_the_readmes_test_command_and_nothing_else() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page("README.md"), re.DOTALL | re.MULTILINE)
    command = next(block.strip() for block in blocks if block.startswith("make test"))
    script = [line for line in page(".ci/run").splitlines() if line and not line.startswith("#")]
    assert script == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', command]


def test_the_readmes_tree_is_the_repositorys() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    folders = {path.split("/")[0] for path in listed if "/" in path and not path.startswith((".", "shared/"))}
    assert set(re.findall(r"^([a-z]+)/ ", page("README.md"), re.MULTILINE)) == folders


def test_every_layer_page_names_the_files_of_its_package() -> None:
    for layer in ("deployments", "flows", "tasks", "infra"):
        text = page(f"docs/layers/{layer}.md")
        modules = [p.name for p in (ROOT / layer).glob("*.py") if p.name != "__init__.py"]
        assert [name for name in modules if f"`{name}`" not in text] == [], layer


def notebook_code() -> str:
    """All code cells of the notebook as one script."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []


def run_notebook(database_url: str, home: Path) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "DARKFACTORY_HOME": str(home),
    }
    done = subprocess.run(
        [sys.executable, "-c", notebook_code()], env={**environment, "DARKFACTORY_DATABASE_URL": database_url},
        cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_runs_on_an_empty_ledger(database_url: str, tmp_path: Path) -> None:
    assert "0 ticket(s): none yet" in run_notebook(database_url, tmp_path)


def test_the_notebook_shows_tickets_tokens_by_role_and_the_cached_share(database_url: str, tmp_path: Path) -> None:
    with Ledger(Database(open_databases(Settings(database_url=database_url)).ledger)) as ledger:
        ticket = Ticket(key="T-1", title="Sum is wrong", body="b", state="ready")
        ledger.record_ticket(ticket, "sums")
        attempt = ledger.start_attempt("T-1", "0" * 40, ticket.revision)
        usage = Usage(prompt_tokens=2_000, cached_tokens=1_500, completion_tokens=70, calls=1)
        ledger.record_session(attempt.id, "key", "coder", usage, "scripted")
    said = run_notebook(database_url, tmp_path)
    assert "Sum is wrong" in said
    assert re.search(r"coder\s+1 calls\s+2,000 prompt\s+70 written", said)
    assert re.search(r"all\s+75% of 2,000 prompt tokens", said)
