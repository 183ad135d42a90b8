"""The command line as people and scripts meet it: a real process, its exit code, its stdout and its stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.engine import free_port
from deployments.snapshot import Snapshot
from infra.boards import Ticket
from infra.claims import Claims
from infra.database import Database
from infra.fleet import Fleet
from infra.ledger import Ledger
from infra.pauses import Pauses
from infra.postgres import open_databases
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
TICKET = "---\ntitle: Sum is wrong\nstate: ready\n---\nadd(1, 2) gives 4.\n"


def darkfactory(
    home: Path, *arguments: str, stdin: str | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder with an empty home."""
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {**kept, "HOME": str(home), "DARKFACTORY_HOME": str(home), "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-P", "-m", "deployments", *arguments]
    return subprocess.run(
        command, env=environment, cwd=home, input=stdin or "", capture_output=True, text=True, timeout=120, check=False
    )


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
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    empty = darkfactory(tmp_path, "status", **known)
    assert "No ticket was worked on yet" in empty.stdout
    with Ledger(Database(open_databases(Settings(database_url=database_url)).ledger)) as ledger:
        ledger.record_ticket(Ticket(key="T-1", title="[red]Sum[/red] is wrong", body="b", state="ready"), "sums")
    listed = darkfactory(tmp_path, "status", **known)
    assert "[red]Sum[/red] is wrong" in listed.stdout
    shown = darkfactory(tmp_path, "show", "T-1", "--json", **known)
    assert (shown.returncode, json.loads(shown.stdout)["key"]) == (0, "T-1")
    unknown = darkfactory(tmp_path, "show", "T-2", "--json", **known)
    assert error_of(unknown)["class"] == "ConfigError"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(open_databases(Settings(database_url=database_url)).ledger) as opened:
        yield opened


def a_busy_factory(database: Database) -> None:
    """A node that holds one ticket, one ticket that waits for its time, one that is parked, and a paused provider."""
    claims = Claims(database)
    Fleet(database).join("mini", slots=2, labels=["xcode"], machine="m", provider="openai", lease_seconds=600)
    held = {"holder": "h", "machine": "m", "repository": "sums", "lease_seconds": 600, "choose_node": lambda _: "mini"}
    running, again, parked = (
        claims.claim(Ticket(key=f"T-{number}", title="t", body="b", state="todo"), read_at=claims.now(), **held)
        for number in (1, 2, 3)
    )
    assert running
    assert again
    assert parked
    claims.retry(again, "the tests hang", 600, "failures")
    claims.park(parked, "waits for a reply", question="Which colour?")
    Pauses(database).pause("provider:openai", "its limit is reached", None)


def test_status_is_one_snapshot_of_what_runs_waits_is_parked_and_paused(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    """OB2."""
    a_busy_factory(database)
    seen = Snapshot.model_validate_json(
        darkfactory(tmp_path, "status", "--json", DARKFACTORY_DATABASE_URL=database_url).stdout
    )
    assert [(claim.ticket, claim.state, claim.node) for claim in seen.running] == [("T-1", "claimed", "mini")]
    assert [(claim.ticket, claim.reason, claim.failures) for claim in seen.retrying] == [("T-2", "the tests hang", 1)]
    assert [(claim.ticket, claim.question) for claim in seen.parked] == [("T-3", "Which colour?")]
    assert [(pause.scope, pause.until) for pause in seen.pauses] == [("provider:openai", None)]
    assert [(node.name, node.slots, node.labels) for node in seen.nodes] == [("mini", 2, ("xcode",))]
    assert (seen.limits.running, seen.limits.slots, seen.limits.max_running) == (1, 2, 50)
    plain = darkfactory(tmp_path, "status", DARKFACTORY_DATABASE_URL=database_url).stdout
    for said in ("until `darkfactory resume provider:openai`", "the tests hang", "Which colour?", "1/2"):
        assert said in plain


def test_nodes_are_listed_with_the_tickets_they_hold(tmp_path: Path, database: Database, database_url: str) -> None:
    a_busy_factory(database)
    listed = darkfactory(tmp_path, "node", "list", "--json", DARKFACTORY_DATABASE_URL=database_url)
    [node] = json.loads(listed.stdout)["nodes"]
    assert (node["name"], node["alive"], node["tickets"]) == ("mini", True, ["T-1"])


def test_a_pause_by_hand_is_shown_until_it_is_resumed(tmp_path: Path, database: Database, database_url: str) -> None:
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    paused = darkfactory(tmp_path, "pause", "provider:mini", "--reason", "new disk", **known)
    assert (paused.returncode, "darkfactory resume provider:mini" in paused.stderr) == (0, True)
    assert Pauses(database).active()["provider:mini"].reason == "new disk"
    wrong = darkfactory(tmp_path, "resume", **known)
    assert (wrong.returncode, "'dispatch' is not paused (paused: provider:mini)" in wrong.stderr) == (2, True)
    assert darkfactory(tmp_path, "resume", "provider:mini", **known).returncode == 0
    assert Pauses(database).active() == {}


def test_only_what_can_be_paused_is_paused(tmp_path: Path) -> None:
    answer = darkfactory(tmp_path, "pause", "mini")
    assert (answer.returncode, "node:NAME" in answer.stderr) == (2, True)


def test_a_parked_ticket_goes_on_by_hand_and_one_that_works_does_not(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    """RB7: the dispatcher looks only at queue states, so the ticket is put back into one."""
    a_busy_factory(database)
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    ticket = tmp_path / "board" / "T-3.md"
    ticket.parent.mkdir()
    ticket.write_text("---\ntitle: t\nstate: needs human\n---\n")
    assert darkfactory(tmp_path, "retry", "T-3", **known).returncode == 0
    assert "state: todo" in ticket.read_text()
    found = Claims(database).find("folder", "T-3")
    assert found
    assert (found.state, found.question) == ("retry-queued", None)
    for ticket, state in (("T-1", "claimed"), ("T-9", "never claimed")):
        refused = darkfactory(tmp_path, "retry", ticket, **known)
        assert (refused.returncode, f"does not wait ({state})" in refused.stderr) == (2, True)


def test_a_node_joins_only_where_it_was_told_to_and_an_unknown_one_is_named(tmp_path: Path, database_url: str) -> None:
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    nowhere = darkfactory(tmp_path, "node", "join", **known)
    assert (nowhere.returncode, "--api URL" in nowhere.stderr) == (2, True)
    away = darkfactory(tmp_path, "node", "join", "--api", "http://127.0.0.1:1/api", **known)
    assert (away.returncode, "no Prefect server answers" in away.stderr) == (3, True)
    unknown = darkfactory(tmp_path, "node", "drain", "nobody", **known)
    assert (unknown.returncode, "no node is named 'nobody'" in unknown.stderr) == (2, True)


def test_init_writes_a_file_that_can_be_used_and_replaces_none(tmp_path: Path) -> None:
    assert darkfactory(tmp_path, "init", "--defaults").returncode == 0
    assert darkfactory(tmp_path, "show", "T-1", "--json", DARKFACTORY_DATABASE_URL="postgresql://u:p@127.0.0.1:1/x").returncode == 3  # fmt: skip
    again = darkfactory(tmp_path, "init", "--defaults")
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert darkfactory(tmp_path, "init", "--defaults", "--force").returncode == 0
    assert (tmp_path / "factory.yaml.bak").exists()


def test_the_doctor_names_every_problem_and_how_to_mend_it(tmp_path: Path, database_url: str) -> None:
    settings = {
        "DARKFACTORY_DATABASE_URL": database_url,
        "DARKFACTORY_MODEL": "openai/x",
        "DARKFACTORY_WEBHOOKS": json.dumps({"port": free_port()}),
    }
    bad = darkfactory(tmp_path, "doctor", "--json", DARKFACTORY_MODEL_URL="http://127.0.0.1:1/v1", **settings)
    answer = json.loads(bad.stdout)
    assert (bad.returncode, answer["exit_code"], answer["ok"]) == (3, 3, False)
    assert [check["name"] for check in answer["checks"] if not check["ok"]] == ["model"]
    (tmp_path / "factory.yaml").write_text("repositories: {sums: {path: /nowhere}}\n")
    worse = darkfactory(tmp_path, "doctor", DARKFACTORY_MODEL_URL="http://127.0.0.1:1/v1", **settings)
    assert worse.returncode == 2
    assert "factory.yaml" in worse.stdout


def test_init_takes_options_and_piped_answers_and_guesses_nothing_without_them(tmp_path: Path) -> None:
    """O7"""
    file = tmp_path / "factory.yaml"
    unanswered = darkfactory(tmp_path, "init")
    assert unanswered.returncode == 2
    assert "nothing was written. `--defaults` asks nothing" in unanswered.stderr
    assert not file.exists()
    wrong = darkfactory(tmp_path, "init", "--defaults", "--board", "trello")
    assert (wrong.returncode, "--board: 'trello' is no kind of board" in wrong.stderr, file.exists()) == (
        2,
        True,
        False,
    )
    options = ("--board", "github", "--board-project", "acme/shop", "--slots", "3")
    answered = darkfactory(tmp_path, "init", "--defaults", *options)
    assert answered.returncode == 0, answered.stderr
    assert "set the environment variable GITHUB_TOKEN" in answered.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert "project: acme/shop" in file.read_text()
    piped = darkfactory(tmp_path, "init", "--force", "--board", "linear", stdin="none\nENG\nembedded\n4\nnone\n")
    assert piped.returncode == 0, piped.stderr
    assert "team: ENG" in file.read_text()
    assert "model_slots: 4" in file.read_text()


def test_looking_and_stopping_work_without_tokens_and_beside_a_bad_edit(tmp_path: Path, database_url: str) -> None:
    """CF1, CF4: another terminal has no token, and `down` must not wait for a comma."""
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    file = tmp_path / "factory.yaml"
    file.write_text("boards: {issues: {kind: github, project: acme/shop, token: $BOARD_TOKEN}}\n")
    with Ledger(Database(open_databases(Settings(database_url=database_url)).ledger), "issues") as ledger:
        ledger.record_ticket(Ticket(key="shop-7", title="Sum is wrong", body="b", state="todo"), "sums")
    shown = darkfactory(tmp_path, "show", "shop-7", **known)  # its board is found by the key
    assert (shown.returncode, "Sum is wrong" in shown.stdout) == (0, True), shown.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "factory.good.yaml").write_text(f"# The last good copy of {str(file)!r}\n{file.read_text()}")
    file.write_text(file.read_text() + "sed: 5\n")
    for command in (("status",), ("down",), ("pause",), ("resume",)):
        answer = darkfactory(tmp_path, *command, **known)
        assert answer.returncode == 0, answer.stderr
        assert "warning: settings are not valid" in answer.stderr
        assert "line 2: sed: no such name (did you mean 'seed'?)" in answer.stderr


def test_a_typo_in_what_is_to_be_paused_is_no_pause(tmp_path: Path, database_url: str) -> None:
    known = {"DARKFACTORY_DATABASE_URL": database_url}
    for scope, said in (
        ("board:foldr", "did you mean 'folder'?"),
        ("node:mini", "there are: none"),
        ("x:y", "cannot be"),
    ):
        answer = darkfactory(tmp_path, "pause", scope, **known)
        assert (answer.returncode, said in answer.stderr) == (2, True), answer.stderr
