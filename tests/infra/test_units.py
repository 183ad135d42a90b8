"""The service files: systemd and a plist parser take them, and the commands they start are real ones."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer._click.exceptions import UsageError

from deployments.__main__ import app

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "infra" / "units").glob("*.service"))
PLIST = ROOT / "infra" / "units" / "dev.darkfactory.node.plist"
PROGRAM = "darkfactory/.venv/bin/darkfactory"
ADDRESS = "http://127.0.0.1:4200/api?a=$b&c"
"""A shell would cut it at the ampersand, were it not in the single quotes that docs/nodes.md asks for."""


def commands_of(unit: Path) -> dict[str, list[str]]:
    """What a unit runs, `ExecStart` and others, as words."""
    found = re.findall(r"^(Exec\w+)=(.+)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: shlex.split(line) for name, line in found}


def parsed(arguments: list[str]) -> None:
    """Let the command line read the arguments without doing anything. Raises UsageError for those it does not know."""
    command, name = typer.main.get_command(app), "darkfactory"
    while subcommands := getattr(command, "commands", None):
        name = arguments[0]
        command, arguments = subcommands[name], arguments[1:]
    command.make_context(name, list(arguments))


def test_there_are_units_for_the_factory_and_for_a_node() -> None:
    assert [unit.name for unit in UNITS] == ["darkfactory-node.service", "darkfactory-up.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    commands = commands_of(unit)
    assert "ExecStart" in commands
    for program, *arguments in commands.values():
        assert program == f"%h/{PROGRAM}"
        parsed(arguments)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(UsageError):
        parsed(["node", "join", "--slot", "2"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    program = tmp_path / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(
        [analyze, "verify", "--user", "--man=no", str(unit)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "network" not in unit.read_text(encoding="utf-8")  # a user's units cannot wait for the system's
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (complaints, done.returncode) == ([], 0), done.stderr


def test_launchd_gets_a_node_that_comes_back_after_a_failure_only() -> None:
    job = plistlib.loads(PLIST.read_bytes())
    assert (job["Label"], job["RunAtLoad"], job["KeepAlive"]) == (PLIST.stem, True, {"SuccessfulExit": False})
    shell, flag, script = job["ProgramArguments"]
    assert (shell, flag) == ("/bin/sh", "-c")
    program, *arguments = shlex.split(script.rpartition("&& exec ")[2])
    assert program == f"$HOME/{PROGRAM}"
    parsed(arguments)


def test_the_agents_script_hands_its_environment_to_the_node(tmp_path: Path) -> None:
    """Run for real, with a program that tells what it got."""
    program = tmp_path / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$PREFECT_API_URL" "$@"\necho complaint >&2\n')
    program.chmod(0o755)
    (tmp_path / ".darkfactory").mkdir()
    (tmp_path / ".darkfactory" / "environment").write_text(f"# ours\nPREFECT_API_URL='{ADDRESS}'\n")
    done = subprocess.run(
        plistlib.loads(PLIST.read_bytes())["ProgramArguments"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout.split()[:3] == [ADDRESS, "node", "join"]
    assert (tmp_path / ".darkfactory" / "logs" / "launchd.log").read_text() == "complaint\n"


@pytest.mark.parametrize("path", [*UNITS, PLIST], ids=lambda path: path.name)
def test_the_docs_say_how_to_install_it(path: Path) -> None:
    assert path.name in (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
