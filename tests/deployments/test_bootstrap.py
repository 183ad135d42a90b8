"""The set-up script, run for real in a small copy of a checkout. The locks are empty so that no package is needed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "sh env cat cksum tr dirname date mkdir rm mv grep tail sleep chmod flock git id".split()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "check out"
    (place / "infra" / "setup").mkdir(parents=True)
    shutil.copy(ROOT / "infra" / "setup" / "bootstrap.sh", place / "infra" / "setup")
    (place / "deployments").mkdir()
    (place / "deployments" / "__init__.py").touch()
    (place / "deployments" / "__main__.py").write_text("import sys\nprint('ran', sys.argv[1:])\n")
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (place / lock).write_text("# nothing\n")
    return place


def environment(**changes: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHON": sys.executable, "DARKFACTORY_SANDBOX": "none", **changes}


def set_up(checkout: Path, flavour: str = "run", **changes: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "infra" / "setup" / "bootstrap.sh"), flavour]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=120, check=False)


def path_of(folder: Path, **scripts: str) -> str:
    """A PATH with the script's own tools and nothing else but the given scripts."""
    folder.mkdir()
    for tool in TOOLS:
        if tool not in scripts:
            (folder / tool).symlink_to(shutil.which(tool) or "/nowhere")
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.slow
def test_a_second_set_up_does_nothing_takes_no_time_and_sees_a_changed_lock(checkout: Path) -> None:
    first = set_up(checkout, "dev")
    assert first.returncode == 0, first.stderr
    started = time.monotonic()
    second, other = set_up(checkout, "dev"), set_up(checkout, "run")
    assert time.monotonic() - started < 2
    assert (second.returncode, second.stderr) == (0, "")
    assert (other.returncode, other.stderr) == (0, "")
    command = subprocess.run(
        [checkout / ".venv/bin/darkfactory", "x"], capture_output=True, text=True, cwd="/", check=True
    )
    assert command.stdout == "ran ['x']\n"
    (checkout / "requirements.lock").write_text("# changed\n")
    assert "done" in set_up(checkout, "run").stderr


@pytest.mark.faults
def test_a_set_up_that_was_killed_in_pip_is_repaired_by_the_next(checkout: Path) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text("nowhere==1 --hash=sha256:" + "0" * 64 + "\n")
    kill_while_pip_asks(checkout)
    (checkout / ".venv" / "half-written").touch()
    refused = set_up(checkout, PIP_NO_INDEX="1")
    assert refused.returncode == 3
    assert "nowhere==1" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("set-up: error: pip could not install requirements.lock")
    assert not (checkout / ".venv" / "half-written").exists()
    lock.write_text("# nothing\n")
    assert set_up(checkout).returncode == 0


def kill_while_pip_asks(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        command = [str(checkout / "infra" / "setup" / "bootstrap.sh"), "run"]
        running = subprocess.Popen(command, env=environment(PIP_INDEX_URL=index), start_new_session=True)
        silent.settimeout(60)
        silent.accept()[0].close()
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_without_a_fitting_python_one_line_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    path = path_of(tmp_path / "bin", python3="exit 1")
    answer = set_up(checkout, PATH=path, PYTHON="")
    assert answer.returncode == 2
    errors = [line for line in answer.stderr.splitlines() if "error" in line]
    assert errors == [
        "set-up: error: no Python 3.11, 3.12 or 3.13 found; "
        "install one (Debian: apt-get install -y python3) or set PYTHON=/path/to/python3.11"
    ]


def test_a_user_without_bubblewrap_is_told_the_command(checkout: Path, tmp_path: Path) -> None:
    path = path_of(tmp_path / "bin", id="echo 1000")
    (tmp_path / "bin" / "apt-get").symlink_to("/bin/true")
    answer = set_up(checkout, PATH=path, DARKFACTORY_SANDBOX="")
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "run: sudo apt-get install -y bubblewrap" in answer.stderr


def test_root_gets_bubblewrap_installed(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    install = f'echo "$@" >>{tmp_path}/asked; [ "$2" = -y ] && /bin/ln -s /bin/true {folder}/bwrap; exit 0'
    path = path_of(folder, id="echo 0", python3="exit 1", **{"apt-get": install})
    answer = set_up(checkout, PATH=path, DARKFACTORY_SANDBOX="", PYTHON="")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-qq update", "-qq -y install --no-install-recommends bubblewrap"]
    assert "no Python" in answer.stderr.splitlines()[-1]
