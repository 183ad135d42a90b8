"""The sandbox really isolates, bounds and ends commands. Real bubblewrap, real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import pydantic
import pytest

from infra.egress import Egress
from infra.errors import ConfigError, DiskFull, InvalidOutput, SandboxUnavailable
from infra.files import naming_a_full_disk
from infra.sandbox import Bind, Bubblewrap, Limits, Unsandboxed, default_toolchain, open_sandbox
from infra.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

BOX = Bubblewrap(Limits(timeout_seconds=20))


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    return path


def processes_with(word: str) -> list[str]:
    """Command lines on this machine that hold `word`."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            lines.append(line)
    return lines


async def gone(word: str) -> bool:
    for _ in range(100):
        if not processes_with(word):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_the_worktree_is_the_working_directory_and_writable(worktree: Path) -> None:
    """WS1: the command's cwd is the worktree."""
    result = await BOX.run("pwd; echo made > file; exit 3", worktree=worktree)
    assert (result.exit_code, result.output) == (3, "/workspace\n")
    assert (worktree / "file").read_text() == "made\n"


async def test_nothing_of_the_host_is_visible_or_writable(worktree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    checks = f"cat {secret}; ls -A {tmp_path} {Path.home()}/.ssh; touch /usr/x /etc/x /x /dev/x; ls -A ~ /tmp"
    result = await BOX.run(checks, worktree=worktree)
    assert "token" not in result.output
    assert result.output.count("No such file") == 3
    assert result.output.count("Read-only file system") >= 3
    assert "touch: cannot touch '/x'" in result.output
    assert "touch: cannot touch '/usr/x'" in result.output


async def test_the_environment_is_cleared(worktree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WS7: no token of ours is in a child's environment."""
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")
    result = await BOX.run(["env"], worktree=worktree, environment={"EXTRA": "1"})
    names = {line.partition("=")[0] for line in result.output.splitlines()}
    assert names == {"PATH", "HOME", "LANG", "TERM", "CI", "PYTHONDONTWRITEBYTECODE", "EXTRA", "PWD"}


async def test_there_is_no_network_unless_it_is_asked_for(worktree: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connect = ["python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"]
    async with server:
        closed = await BOX.run(connect, worktree=worktree)
        opened = await BOX.run(connect, worktree=worktree, network=True)
    assert "ConnectionRefusedError" in closed.output
    assert opened.exit_code == 0, opened.output


@pytest.mark.skipif(not Path("/etc/ssl/certs").is_dir(), reason="certificates lie elsewhere")
async def test_a_way_out_brings_certificates_but_not_the_machines_private_keys(worktree: Path) -> None:
    for options in ({"network": True}, {"egress": Egress()}):
        result = await BOX.run("ls /etc/ssl; ls /etc/resolv.conf", worktree=worktree, **options)  # type: ignore[arg-type]
        assert "certs" in result.output
        assert "private" not in result.output
        assert ("No such file" in result.output) is ("egress" in options)
    assert "certs" not in (await BOX.run("ls /etc/ssl", worktree=worktree)).output


async def test_there_are_no_capabilities_and_no_further_namespaces(worktree: Path) -> None:
    result = await BOX.run("grep CapEff /proc/self/status; unshare -U true; mount -t tmpfs x /tmp", worktree=worktree)
    assert "CapEff:\t0000000000000000" in result.output
    assert "unshare failed" in result.output
    assert result.exit_code != 0


async def test_python_pytest_ruff_and_node_work_inside(worktree: Path) -> None:
    result = await BOX.run("python -m pytest --version && ruff --version && bandit --version", worktree=worktree)
    assert result.exit_code == 0, result.output
    if shutil.which("node"):
        result = await BOX.run(["node", "-e", "console.log(require('os').userInfo().username)"], worktree=worktree)
        assert result.output == "agent\n"


def test_the_toolchain_never_holds_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert tmp_path not in default_toolchain()
    assert Path(sys.prefix) in default_toolchain() or Path(sys.prefix).is_relative_to("/usr")


async def test_the_git_pointer_of_a_linked_worktree_is_covered(worktree: Path) -> None:
    (worktree / ".git").write_text("gitdir: /home/someone/project/.git/worktrees/x\n")
    result = await BOX.run("cat .git; git status; rm -f .git; echo planted > .git", worktree=worktree)
    assert "someone" not in result.output
    assert "someone" in (worktree / ".git").read_text()
    read_only = Bind(source=worktree, target="/workspace")
    result = await BOX.run("cat .git; touch x", worktree=worktree, binds=[read_only])
    assert "someone" not in result.output
    assert "Read-only" in result.output


async def test_binds_are_read_only_unless_asked(worktree: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for writable in (False, True):
        bind = Bind(source=tmp_path / "data", target="/data", writable=writable)
        await BOX.run("echo x > /data/file", worktree=worktree, binds=[bind])
        assert (tmp_path / "data/file").exists() == writable


async def test_a_bind_is_not_led_out_of_the_worktree_by_a_link(worktree: Path, tmp_path: Path) -> None:
    (worktree / "sub").symlink_to(f"/oldroot{tmp_path}")
    with pytest.raises(InvalidOutput, match="link"):
        await BOX.run("true", worktree=worktree, binds=[Bind(source=tmp_path, target="/workspace/sub/made")])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("place", ["home", "link", "file", "missing", "link/inside"])
async def test_a_worktree_that_must_not_be_handed_out_is_refused(place: str, tmp_path: Path) -> None:
    """WS1."""
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "file").touch()
    path = Path.home() if place == "home" else tmp_path / place
    with pytest.raises(ConfigError):
        await BOX.run("true", worktree=path)


async def test_long_output_keeps_its_beginning_and_its_end(worktree: Path) -> None:
    box = Bubblewrap(Limits(output_bytes=1000))
    result = await box.run("echo first; seq 3000; echo last >&2", worktree=worktree)
    assert result.output.startswith("first\n1\n")
    assert result.output.endswith("3000\nlast\n")
    assert "bytes left out" in result.output
    assert len(result.output) <= 1000
    assert not result.flooded


async def test_short_output_is_whole_and_not_utf8_is_replaced(worktree: Path) -> None:
    box = Bubblewrap(Limits(output_bytes=100))
    assert (await box.run("printf %0100d 7", worktree=worktree)).output == "7".zfill(100)
    assert (await box.run(r"printf '\377ok'", worktree=worktree)).output == "�ok"


async def test_a_flood_is_killed_and_does_not_fill_our_memory(worktree: Path) -> None:
    tracemalloc.start()
    result = await Bubblewrap(Limits(output_bytes=1_000_000)).run("yes flood", worktree=worktree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.flooded
    assert not result.timed_out
    assert len(result.output) <= 1_000_000
    assert peak < 16_000_000


async def test_standard_input_arrives_and_is_empty_by_default(worktree: Path) -> None:
    data = b"x" * 300_000
    assert (await BOX.run("wc -c", worktree=worktree, stdin=data)).output.strip() == "300000"
    assert (await BOX.run("wc -c", worktree=worktree)).output.strip() == "0"


async def test_a_timeout_kills_daemonised_grandchildren_too(worktree: Path) -> None:
    command = "(setsid sh -c 'setsid sleep 98701 & sleep 98702' &) ; setsid sleep 98703"
    result = await BOX.run(command, worktree=worktree, timeout_seconds=0.5)
    assert result.timed_out
    assert result.exit_code < 0
    assert await gone("sleep 9870")


async def test_daemons_end_with_the_command_and_do_not_hold_it_up(worktree: Path) -> None:
    started = time.monotonic()
    result = await BOX.run("setsid sleep 98711 & echo done", worktree=worktree)
    assert result.output == "done\n"
    assert time.monotonic() - started < 10
    assert await gone("sleep 98711")


@pytest.mark.parametrize("egress", [None, Egress()], ids=["shut", "egress"])
@pytest.mark.parametrize("box", [BOX, Unsandboxed(Limits())], ids=lambda b: str(b.name))
async def test_fifty_cancelled_commands_leave_no_process_and_no_descriptor(
    box: Bubblewrap | Unsandboxed, egress: Egress | None, worktree: Path
) -> None:
    """RC8 in small. Those with a way out take longer to start, so they are cancelled later, too."""
    await box.run("true", worktree=worktree, egress=egress)
    before = len(list(Path("/proc/self/fd").iterdir()))
    word = f"sleep 9872{len(box.name)}{bool(egress):d}"
    for number in range(50):
        task = asyncio.create_task(box.run(f"{word}1 & {word}2", worktree=worktree, egress=egress))
        await asyncio.sleep((0.0004 if egress is None else 0.002) * number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await gone(word)
    await asyncio.sleep(0.05)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.parametrize("egress", ["None", "Egress()"])
@pytest.mark.parametrize("kind", ["Bubblewrap", "Unsandboxed"])
async def test_our_own_sudden_death_takes_all_commands_along_even_those_just_starting(
    kind: str, egress: str, worktree: Path
) -> None:
    """RC10: killed with -9 while one command runs and twelve are at different points of their start."""
    word = f"sleep 9873{len(kind)}{len(egress)}"
    script = f"""if True:
        import asyncio, pathlib
        from infra.sandbox import *
        async def main():
            box, worktree = {kind}(Limits()), pathlib.Path({str(worktree)!r})
            options = {{"worktree": worktree, "egress": {egress}}}
            tasks = [asyncio.create_task(box.run("echo up > up; {word}", **options))]
            while not (worktree / "up").exists():
                await asyncio.sleep(0.01)
            for _ in range(12):
                tasks.append(asyncio.create_task(box.run("{word}", **options)))
                await asyncio.sleep(0.004 if {egress} is None else 0.02)
            os.kill(os.getpid(), 9)
        asyncio.run(main())"""
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, timeout=60
    )
    assert run.returncode == -9, run.stderr
    assert await gone(word)


async def test_memory_files_and_scratch_space_are_limited(worktree: Path) -> None:
    box = Bubblewrap(Limits(memory_bytes=200 << 20, file_bytes=1 << 20, tmp_bytes=1 << 20))
    big = await box.run(["python", "-c", "x = bytearray(400 << 20)"], worktree=worktree)
    assert "MemoryError" in big.output
    await box.run("head -c 5000000 /dev/zero > big", worktree=worktree)
    assert (worktree / "big").stat().st_size == 1 << 20
    scratch = "for d in /tmp ~ /dev/shm; do head -c 900000 /dev/zero > $d/a; head -c 900000 /dev/zero > $d/b; done"
    assert (await box.run(scratch, worktree=worktree)).output.count("No space left") == 3
    assert (await box.run("ulimit -c; ulimit -n", worktree=worktree)).output.split()[0] == "0"


def test_a_full_disk_is_named() -> None:
    with pytest.raises(DiskFull, match="a note"), naming_a_full_disk("a note"):
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("command", [["echo", "\0"], ["echo", "x" * 200_000]])
async def test_a_command_that_cannot_be_started_is_the_works_fault(command: list[str], worktree: Path) -> None:
    with pytest.raises(InvalidOutput):
        await BOX.run(command, worktree=worktree)


async def test_an_unknown_program_is_an_exit_code(worktree: Path) -> None:
    assert (await BOX.run(["no-such-program"], worktree=worktree)).exit_code == 127


async def test_a_command_that_pretends_to_be_a_broken_sandbox_is_not_believed(worktree: Path) -> None:
    assert (await BOX.run("echo 'bwrap: no' >&2; exit 1", worktree=worktree)).exit_code == 1
    with pytest.raises(SandboxUnavailable, match="nowhere"):
        await BOX.run("true", worktree=worktree, binds=[Bind(source=worktree / "nowhere", target="/x")])


def test_opening_probes_bubblewrap_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_sandbox(Settings(home=tmp_path)).name == "bubblewrap"
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match=r"uid map.*sandbox: none"):
        open_sandbox(Settings(home=tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SandboxUnavailable, match="bubblewrap"):
        open_sandbox(Settings(home=tmp_path))


async def test_without_a_sandbox_it_warns_and_keeps_limits_and_a_clean_environment(
    worktree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")
    with caplog.at_level(logging.WARNING):
        box = open_sandbox(Settings(home=tmp_path, sandbox="none"))
    assert "WITHOUT isolation" in caplog.text
    result = await box.run("pwd; env; ulimit -c; sleep 98741 & sleep 98742", worktree=worktree, timeout_seconds=0.5)
    assert result.timed_out
    assert result.output.startswith(f"{worktree}\n")
    assert "hunter2" not in result.output
    assert await gone("sleep 9874")


async def test_a_daemon_without_a_sandbox_does_not_hold_the_result_up(worktree: Path) -> None:
    box = Unsandboxed(Limits())
    started = time.monotonic()
    result = await box.run("setsid sleep 5 & echo done", worktree=worktree)
    assert result.output == "done\n"
    assert time.monotonic() - started < 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_it_works_for_an_ordinary_user() -> None:
    """With the system's Python: the one that runs this test may lie where only root can go."""
    root = Path(tempfile.mkdtemp(prefix="darkfactory-user-"))
    packages = root / "packages"
    try:
        here = Path(pydantic.__file__).parents[1]
        shutil.copytree(
            Path(__file__).parents[2] / "infra", packages / "infra", ignore=shutil.ignore_patterns("llm.py")
        )
        for name in (
            "pydantic",
            "pydantic_core",
            "pydantic_settings",
            "annotated_types",
            "yaml",
            "dotenv",
            "typing_inspection",
            *("h11", "httpx", "httpcore", "certifi", "anyio", "idna"),
        ):
            shutil.copytree(here / name, packages / name)
        shutil.copy(here / "typing_extensions.py", packages)
        (root / "worktree").mkdir()
        subprocess.run(["chown", "-R", "65534:65534", root], check=True)
        script = (
            "import asyncio, pathlib\nfrom infra.sandbox import *\n"
            "r = asyncio.run(Bubblewrap(Limits(processes=20)).run("
            "'id -u; echo x > file; i=0; while [ $i -lt 40 ]; do sleep 0.2 & i=$((i+1)); done; wait', "
            "worktree=pathlib.Path('worktree')))\nprint(r)"
        )
        environment = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(packages)}
        run = subprocess.run(
            ["/usr/bin/python3", "-c", script], cwd=root, user=65534, group=65534, extra_groups=[],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        if "No module named 'pydantic_core._pydantic_core'" in run.stderr:
            pytest.skip("the system's Python is another version")
        assert "output='1000\\n" in run.stdout, run
        assert "ork" in run.stdout  # "Cannot fork": the limit on processes binds for users
        assert (root / "worktree/file").read_text() == "x\n"
    finally:
        shutil.rmtree(root)
