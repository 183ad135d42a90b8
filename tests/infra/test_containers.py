"""Containers isolate, bound and end commands as bubblewrap does. Real engines, with an image made of this machine's programs.

Skipped where no engine runs: docker is asked as its client is set up (DOCKER_HOST), podman with runc where its own
choice does not work.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr

from infra.containers import Containers, open_containers
from infra.egress import Egress, Upstream
from infra.errors import ConfigError, InvalidOutput, SandboxUnavailable
from infra.git import Mirror
from infra.sandbox import Bind, Limits, open_sandbox
from infra.settings import Settings
from tests.infra.test_egress import ASK, KEY, Service, running

pytestmark = pytest.mark.integration

IMAGE = "localhost/darkfactory-test:latest"
PROGRAMS = "dash env cat ls id sleep touch grep head seq wc git setsid rm kill mkdir true printf sh python3".split()
LIMITS = Limits(timeout_seconds=60, memory_bytes=512 << 20)


def root_filesystem(target: Path) -> None:
    """A small one, of this machine's /usr: a shell, git, Python and what they load."""
    stdlib = Path(subprocess.check_output(["/usr/bin/python3", "-c", "import os; print(os.path.dirname(os.__file__))"], text=True).strip())  # fmt: skip
    programs = [Path("/usr/bin", name) for name in PROGRAMS]
    linked = [subprocess.run(["ldd", p], capture_output=True, text=True).stdout for p in [*programs, *stdlib.glob("lib-dynload/*.so")]]  # fmt: skip
    libraries = {Path(path) for text in linked for path in re.findall(r"(/\S+)", text)}
    with tarfile.open(target, "w", dereference=True) as tar:
        for name in ("bin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for path in sorted({*programs, *libraries}):
            tar.add(path, str(path if path.is_relative_to("/usr") else Path("/usr", *path.parts[1:])).lstrip("/"))
        tar.add(stdlib, str(stdlib).lstrip("/"), filter=lambda i: None if re.search(r"__pycache__|/(test|idlelib|ensurepip)\b", i.name) else i)  # fmt: skip


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "root.tar"
    root_filesystem(path)
    return path


@pytest.fixture(scope="module", params=["podman", "docker"])
def box(request: pytest.FixtureRequest, image_file: Path) -> Iterator[Containers]:
    engine: Literal["docker", "podman"] = request.param
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        imported = subprocess.run([engine, "import", image_file, IMAGE], capture_output=True, text=True)
        if imported.returncode != 0:
            pytest.skip(f"{engine} does not work here: {imported.stderr[-300:]}")
        try:
            yield _opened(engine, image_file.parent, patch)
        finally:
            subprocess.run([engine, "rmi", "--force", IMAGE], capture_output=True)


def _opened(engine: Literal["docker", "podman"], folder: Path, patch: pytest.MonkeyPatch) -> Containers:
    try:
        return open_containers(engine, IMAGE, LIMITS)
    except SandboxUnavailable as error:
        if engine == "docker" or shutil.which("runc") is None:
            pytest.skip(str(error))
    (folder / "containers.conf").write_text('[engine]\nruntime = "runc"\n')
    patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
    try:
        return open_containers(engine, IMAGE, LIMITS)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "work,tree"
    path.mkdir()
    return path


def containers(engine: str) -> list[str]:
    listed = subprocess.run(
        [engine, "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if name.startswith("darkfactory-")]


def folders() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("darkfactory-egress-*"))


async def nothing_is_left(box: Containers) -> bool:
    for _ in range(100):
        if not containers(box.name) and not folders():
            return True
        await asyncio.sleep(0.1)
    return False


async def test_the_worktree_is_the_working_directory_and_the_rest_is_read_only(box: Containers, worktree: Path) -> None:
    """WS1, WS7."""
    command = """pwd; echo one >&2; echo two; echo made > file; touch /x /usr/x; touch /tmp/x ~/x; ls -d ~ /root /work
        grep -E 'CapEff|NoNewPrivs|^Seccomp:' /proc/self/status; cat /proc/net/dev | wc -l; env; exit 3"""
    result = await box.run(command, worktree=worktree, environment={"EXTRA": "two\nlines"})
    assert result.exit_code == 3
    assert result.output.startswith("/workspace\none\ntwo\n")
    assert (worktree / "file").read_text() == "made\n"
    assert result.output.count("Read-only file system") == 2
    assert "/home/agent\n" in result.output
    assert "cannot access '/work'" in result.output
    assert "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n3\n" in result.output
    assert "EXTRA=two\nlines\n" in result.output
    assert "HOME=/home/agent" in result.output


async def test_nothing_of_our_environment_goes_in_and_what_is_given_is_in_no_argument(
    box: Containers, worktree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS7. Podman would hand in the proxies that it finds, with the passwords in their addresses."""
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")
    monkeypatch.setenv("https_proxy", "http://user:hunter2@proxy.example:1")
    running_one = asyncio.create_task(
        box.run("env; touch up; sleep 1", worktree=worktree, environment={"LOGIN": "hunter3", "PATH": "/usr/bin:/bin"})
    )
    while not (worktree / "up").exists():
        await asyncio.sleep(0.01)
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    output = (await running_one).output
    assert "hunter2" not in output
    assert "LOGIN=hunter3" in output
    assert any(b"--read-only" in line for line in lines)
    assert not any(b"hunter" in line for line in lines)


async def test_standard_input_limits_and_long_output(box: Containers, worktree: Path) -> None:
    assert (await box.run("wc -c", worktree=worktree, stdin=b"x" * 300_000)).output.strip() == "300000"
    assert (await box.run("wc -c", worktree=worktree)).output.strip() == "0"
    small = Containers(box.name, IMAGE, Limits(output_bytes=1000, file_bytes=1 << 20, tmp_bytes=1 << 20, memory_bytes=128 << 20))  # type: ignore[arg-type]  # fmt: skip
    result = await small.run("echo first; seq 3000; echo last >&2", worktree=worktree)
    assert result.output.startswith("first\n1\n")
    assert result.output.endswith("3000\nlast\n")
    assert not result.flooded
    scratch = "head -c 5000000 /dev/zero > big; for d in /tmp ~; do head -c 900000 /dev/zero > $d/a; head -c 900000 /dev/zero > $d/b; done"
    assert (await small.run(scratch, worktree=worktree)).output.count("No space left") == 2
    assert (worktree / "big").stat().st_size == 1 << 20
    hungry = await small.run(["python3", "-c", "x = b'x' * (400 << 20)"], worktree=worktree)
    assert hungry.exit_code == 137


async def test_a_command_that_ends_like_a_broken_engine_is_not_believed(box: Containers, worktree: Path) -> None:
    for command in ("echo 'Error: no' >&2; exit 125", "echo 'docker: no' > /proc/1/fd/2; exit 126", "no-such-program"):
        result = await box.run(command, worktree=worktree)
        assert result.exit_code in (125, 126, 127)
    assert (await box.run("kill -9 $$", worktree=worktree)).exit_code == 137
    with pytest.raises(SandboxUnavailable, match="nowhere"):
        await box.run("true", worktree=worktree, binds=[Bind(source=worktree / "nowhere", target="/x")])


async def test_binds_and_the_git_pointer(box: Containers, worktree: Path, tmp_path: Path) -> None:
    (worktree / ".git").write_text("gitdir: /home/someone/project/.git/worktrees/x\n")
    (tmp_path / 'da"ta').mkdir()
    bind = Bind(source=tmp_path / 'da"ta', target="/data", writable=True)
    result = await box.run("cat .git; rm -f .git; echo x > /data/file", worktree=worktree, binds=[bind])
    assert "someone" not in result.output
    assert "someone" in (worktree / ".git").read_text()
    assert (tmp_path / 'da"ta/file').exists()
    read_only = bind.model_copy(update={"writable": False})
    assert (await box.run("echo y > /data/file", worktree=worktree, binds=[read_only])).exit_code != 0
    looked = await box.run("cat .git; touch x", worktree=worktree, binds=[Bind(source=worktree, target="/workspace")])
    assert "someone" not in looked.output
    assert "Read-only" in looked.output
    (worktree / "sub").symlink_to(tmp_path)
    with pytest.raises(InvalidOutput, match="link"):
        await box.run("true", worktree=worktree, binds=[Bind(source=tmp_path, target="/workspace/sub/made")])


async def test_a_commit_is_made_in_a_container(box: Containers, tmp_path: Path) -> None:
    """The git folder, its objects and the worktree are bound; a bundle comes out."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    (checkout / "file").write_text("one\n")
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    mirror = Mirror.open(tmp_path / "mirrors", "project", str(checkout))
    sha = mirror.base(None)[1]
    with mirror.worktree(tmp_path / "worktrees", "T-1", "coder", sha) as tree:
        (tree.path / "file").write_text("two\n")
        made = await tree.commit(box, "two")
    assert made != sha
    shown = subprocess.run(["git", f"--git-dir={mirror.path}", "show", f"{made}:file"], capture_output=True, text=True)
    assert shown.stdout == "two\n"


async def test_a_way_out_through_the_gateway_and_nowhere_else(box: Containers, worktree: Path) -> None:
    """WS7: in the container there is the gateway's port, and neither its key, nor its socket, nor a network."""
    program = """
    import glob, socket
    stream = ask("/model/events")
    for _ in range(3):
        print(stream.readline().decode().strip(), flush=True)
        stream.readline()
        ask("/model/more").read()
    try:
        proxied("evil.example", 443)
    except OSError as error:
        print(error)
    try:
        socket.create_connection(("1.1.1.1", 53), 2)
    except OSError:
        print("no network")
    seen = b"".join(open(path, "rb").read() for name in ("environ", "cmdline") for path in glob.glob(f"/proc/[0-9]*/{name}"))
    print(b"hunt" + b"er2" in seen, os.listdir("/run/darkfactory"))
    """
    with running(Service()) as service:
        egress = Egress(upstreams={"model": Upstream(url=f"{service.url}/v1", headers={"x-api-key": SecretStr(KEY)})})
        script = ASK + program.replace("\n    ", "\n")
        result = await box.run(
            ["python3", "-c", script], worktree=worktree, egress=egress, environment={"BASE": "{gateway}"}
        )
    assert result.output.splitlines() == [
        *("data: 0", "data: 1", "data: 2", "Tunnel connection failed: 403 ", "no network", "False []")
    ]
    assert result.refused == ("evil.example:443",)
    assert service.requests[0]["headers"]["x-api-key"] == KEY
    assert not folders()


async def test_time_outs_floods_and_cancelled_commands_leave_nothing(box: Containers, worktree: Path) -> None:
    """RC8 in small."""
    late = await box.run("(setsid sleep 98801 &); sleep 98802", worktree=worktree, timeout_seconds=2, egress=Egress())
    assert late.timed_out
    assert containers(box.name) == []
    flood = Containers(box.name, IMAGE, Limits(output_bytes=1000))  # type: ignore[arg-type]
    assert (await flood.run("while true; do seq 1000; done", worktree=worktree)).flooded
    assert containers(box.name) == []
    assert (await box.run("setsid sleep 98803 & echo done", worktree=worktree)).output == "done\n"
    for number in range(5):
        task = asyncio.create_task(box.run("sleep 98804", worktree=worktree, egress=Egress()))
        await asyncio.sleep(0.2 * number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await nothing_is_left(box)
    assert not _processes("sleep 9880")


def _processes(word: str) -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.startswith(word)]


async def test_our_own_sudden_death_takes_containers_along(box: Containers, worktree: Path) -> None:
    """RC10: killed with -9 while one command runs and three are at different points of their start."""
    script = f"""if True:
        import asyncio, os, pathlib
        from infra.containers import *
        async def main():
            box, worktree = Containers({box.name!r}, {IMAGE!r}, Limits()), pathlib.Path({str(worktree)!r})
            options = {{"worktree": worktree, "egress": Egress()}}
            tasks = [asyncio.create_task(box.run("echo up > up; sleep 98811", **options))]
            while not (worktree / "up").exists():
                await asyncio.sleep(0.01)
            for _ in range(3):
                tasks.append(asyncio.create_task(box.run("sleep 98811", **options)))
                await asyncio.sleep(0.15)
            os.kill(os.getpid(), 9)
        asyncio.run(main())"""
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, timeout=60
    )
    assert run.returncode == -9, run.stderr
    await asyncio.sleep(1)
    assert await nothing_is_left(box)
    assert not _processes("sleep 98811")


async def test_opening_removes_what_the_dead_left_and_nothing_of_the_living(box: Containers, worktree: Path) -> None:
    living = asyncio.create_task(box.run("touch up; sleep 3; echo lived", worktree=worktree))
    while not (worktree / "up").exists():
        await asyncio.sleep(0.02)
    (own,) = containers(box.name)
    _, boot, namespace, pid, began, _ = own.split("-")
    dead = [
        f"darkfactory-{boot}-{namespace}-{pid}-1-0",
        f"darkfactory-{boot}-{namespace}-999999999-{began}-0",
        "darkfactory-aaaaaaaa-1-1-1-0",
    ]
    elsewhere = f"darkfactory-{boot}-1-{pid}-{began}-0"
    for name in (*dead, elsewhere):
        labels = ["--name", name, "--label", "darkfactory.sandbox", "--ulimit", "nofile=4096:4096"]
        subprocess.run([box.name, "create", *labels, IMAGE, "/bin/true"], check=True, capture_output=True)
    try:
        await asyncio.to_thread(box.sweep)
        assert sorted(containers(box.name)) == sorted([own, elsewhere])
        assert (await living).output == "lived\n"
    finally:
        subprocess.run([box.name, "rm", "--force", elsewhere], check=True, capture_output=True)


def test_opening_says_what_to_do(box: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, sandbox=box.name, sandbox_image=IMAGE)  # type: ignore[arg-type]
    assert open_sandbox(settings).name == box.name
    with pytest.raises(ConfigError, match="sandbox_image"):
        open_sandbox(settings.model_copy(update={"sandbox_image": None}))
    with pytest.raises(SandboxUnavailable, match=rf"{box.name} pull localhost/none"):
        open_sandbox(settings.model_copy(update={"sandbox_image": "localhost/none"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="not installed"):
        open_sandbox(settings)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_engine_that_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo 'docker: Cannot connect to the daemon' >&2; exit 125")
    with pytest.raises(SandboxUnavailable, match=r"Cannot connect.*start the engine"):
        open_containers("docker", IMAGE, LIMITS)


@pytest.mark.parametrize(("says", "started"), [("WARNING: no swap limit", True), ("docker: Error: no space", False)])
async def test_only_an_error_of_the_engine_means_that_nothing_was_started(
    says: str, started: bool, worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, f"echo '{says}' >&2; exit 127")
    command = Containers("docker", IMAGE, LIMITS).run("no-such-program", worktree=worktree)
    if started:
        assert (await command).exit_code == 127
    else:
        with pytest.raises(SandboxUnavailable, match="no space"):
            await command
