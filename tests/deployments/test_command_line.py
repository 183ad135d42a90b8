"""The command line as people and scripts meet it: a real process, its exit code, its stdout and its stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.boards import Ticket
from infra.database import Database
from infra.ledger import Ledger
from infra.postgres import open_databases
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
TICKET = "---\ntitle: Sum is wrong\nstate: ready\n---\nadd(1, 2) gives 4.\n"


def darkfactory(home: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder with an empty home."""
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {**kept, "HOME": str(home), "DARKFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-P", "-m", "deployments", *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def error_of(answer: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object that a failed `--json` command prints."""
    assert answer.stdout.count("\n") == 1, answer.stdout
    found = json.loads(answer.stdout)["error"]
    assert found["exit_code"] == answer.returncode
    return dict(found)


def test_help_loads_none_of_the_heavy_modules(tmp_path: Path) -> None:
    answer = darkfactory(tmp_path, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert answer.returncode == 0
    assert "demo" in answer.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"prefect", "sqlalchemy", "psycopg", "xllamacpp", "git", "tree_sitter"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("shw",), "No such command 'shw'"),
        (("run",), "Missing argument"),
        (("run", "T-1", "--seed", "x"), "--seed"),
        (("run", "nowhere/T-1.md"), "there is no ticket file 'nowhere/T-1.md'"),
    ],
)
def test_bad_usage_ends_with_2_and_one_json_object_when_asked(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    plain, as_json = darkfactory(tmp_path, *arguments), darkfactory(tmp_path, *arguments, "--json")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert said in plain.stderr
    assert "Traceback" not in plain.stderr
    assert said in error_of(as_json)["message"]


def test_settings_that_are_not_yaml_or_not_valid_end_with_2(tmp_path: Path) -> None:
    (tmp_path / "factory.yaml").write_text("model: [")
    broken = error_of(darkfactory(tmp_path, "status", "--json"))
    assert (broken["class"], broken["exit_code"]) == ("ConfigError", 2)
    assert "not valid YAML" in broken["message"]
    (tmp_path / "factory.yaml").write_text("max_rounds: 0\nmodle: x\n")
    wrong = error_of(darkfactory(tmp_path, "status", "--json"))
    assert "max_rounds" in wrong["message"]
    assert "modle" in wrong["message"]


def test_an_unknown_ticket_repository_or_model_shows_before_anything_starts(tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    ticket = board / "T-1.md"
    ticket.write_text(TICKET)
    unknown = error_of(darkfactory(tmp_path, "run", "T-9", "--json"))
    assert (unknown["class"], "T-9" in unknown["message"]) == ("ConfigError", True)
    homeless = error_of(darkfactory(tmp_path, "run", str(ticket), "--json"))
    assert "--repo PATH" in homeless["message"]
    nowhere = error_of(darkfactory(tmp_path, "run", "T-1", "--repo", "nowhere", "--json"))
    assert "'nowhere'" in nowhere["message"]
    model = error_of(darkfactory(tmp_path, "run", "T-1", "--repo", str(tmp_path), "--json", DARKFACTORY_MODEL="gpt"))
    assert "'gpt'" in model["message"]
    assert ticket.read_text() == TICKET
    assert not (tmp_path / "postgres").exists()
    assert not (tmp_path / "logs").exists()


def test_a_database_that_is_down_ends_with_3_and_keeps_the_password(tmp_path: Path) -> None:
    url = "postgresql://someone:hunter2hunter2@127.0.0.1:1/none"
    answer = darkfactory(tmp_path, "status", "--json", DARKFACTORY_DATABASE_URL=url)
    error = error_of(answer)
    assert (error["class"], error["exit_code"]) == ("Unreachable", 3)
    assert "hunter2" not in answer.stdout + answer.stderr


def test_status_and_show_print_what_the_ledger_knows(tmp_path: Path, database_url: str) -> None:
    empty = darkfactory(tmp_path, "status", "--json", DARKFACTORY_DATABASE_URL=database_url)
    assert json.loads(empty.stdout) == {"tickets": []}
    with Ledger(Database(open_databases(Settings(database_url=database_url)).ledger)) as ledger:
        ledger.record_ticket(Ticket(key="T-1", title="[red]Sum[/red] is wrong", body="b", state="ready"), "sums")
    listed = darkfactory(tmp_path, "status", DARKFACTORY_DATABASE_URL=database_url)
    assert "[red]Sum[/red] is wrong" in listed.stdout
    shown = darkfactory(tmp_path, "show", "T-1", "--json", DARKFACTORY_DATABASE_URL=database_url)
    assert (shown.returncode, json.loads(shown.stdout)["key"]) == (0, "T-1")
    unknown = darkfactory(tmp_path, "show", "T-2", "--json", DARKFACTORY_DATABASE_URL=database_url)
    assert error_of(unknown)["class"] == "ConfigError"


def test_the_doctor_names_every_problem_and_how_to_mend_it(tmp_path: Path, database_url: str) -> None:
    settings = {"DARKFACTORY_DATABASE_URL": database_url, "DARKFACTORY_MODEL": "openai/x"}
    bad = darkfactory(tmp_path, "doctor", "--json", DARKFACTORY_MODEL_URL="http://127.0.0.1:1/v1", **settings)
    answer = json.loads(bad.stdout)
    assert (bad.returncode, answer["exit_code"], answer["ok"]) == (3, 3, False)
    assert [check["name"] for check in answer["checks"] if not check["ok"]] == ["model"]
    (tmp_path / "factory.yaml").write_text("repositories: {sums: {path: /nowhere}}\n")
    worse = darkfactory(tmp_path, "doctor", DARKFACTORY_MODEL_URL="http://127.0.0.1:1/v1", **settings)
    assert worse.returncode == 2
    assert "factory.yaml" in worse.stdout
