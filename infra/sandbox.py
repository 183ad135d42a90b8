"""Running one command that nobody trusts: what it may see, how much it may use, and that nothing of it is left.

Owns isolation and limits. It does not know git, tickets or what a command is for.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol

from infra.errors import ConfigError, DiskFull, InvalidOutput, SandboxUnavailable
from infra.llm import Frozen
from infra.settings import Settings

log = logging.getLogger(__name__)

WORKSPACE = "/workspace"
_HOME = "/home/agent"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_DRAIN_SECONDS = 1.0
_PROBE_SECONDS = 30

# No `--new-session`: bwrap is started in a session of its own, without a terminal, and with its init in the same process
# group one signal reaches both. A killed bwrap leaves the init behind when it comes between the init's setsid and its
# request to die with its parent.
_ISOLATION = (
    "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--cap-drop", "ALL",
    "--uid", "1000", "--gid", "1000", "--hostname", "sandbox",
)  # fmt: skip
# When we are killed while bwrap starts, its init does not notice (20 of 40 stayed behind). This watcher does: it is
# nobody's child, so the command cannot meet it in a `wait`.
_WATCHED = '( { read -r _ < "/dev/fd/$1"; kill -s KILL -- "$2"; } < /dev/null > /dev/null 2>&1 & ); shift 2; exec "$@"'
_ETC = (
    "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "protocols", "services",
)  # fmt: skip
_NETWORK_ETC = ("resolv.conf", "nsswitch.conf", "ssl", "pki", "ca-certificates")
_IDENTITY = {
    "/etc/passwd": f"agent:x:1000:1000:agent:{_HOME}:/bin/sh\n",
    "/etc/group": "agent:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}


class Bind(Frozen):
    """A host file or folder that the command sees at the absolute path `target`. Only bubblewrap binds."""

    source: Path
    target: str
    writable: bool = False


class CommandResult(Frozen):
    """How a command ended. `exit_code` is negative when a signal killed it.

    `output` is stdout and stderr as they came, at most `Limits.output_bytes`: when more was written, the first and
    the last half around a line that says how much is missing. `flooded`: it wrote so much that it was killed.
    """

    exit_code: int
    output: str
    seconds: float
    timed_out: bool = False
    flooded: bool = False


class Limits(Frozen):
    """Bounds of one command. `memory_bytes` is per process (data, not address space: node reserves a lot of that).

    `processes` does not bind when the factory runs as root: the kernel exempts root from it.
    """

    timeout_seconds: float = 600
    output_bytes: int = 1_000_000
    memory_bytes: int = 4 << 30
    file_bytes: int = 1 << 30
    processes: int = 512
    open_files: int = 4096
    tmp_bytes: int = 1 << 30
    flood_factor: int = 64
    """A command that writes more than this many times `output_bytes` is killed."""


class Sandbox(Protocol):
    """Runs commands in a worktree."""

    name: str
    """`bubblewrap` or `none`."""

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        worktree: Path,
        timeout_seconds: float | None = None,
        network: bool = False,
        environment: Mapping[str, str] = {},
        binds: Sequence[Bind] = (),
        stdin: bytes = b"",
    ) -> CommandResult:
        """Run an argument list, or a string by `/bin/sh -c`, with the worktree as the only writable place and cwd.

        Cancelling kills the command. Raises SandboxUnavailable, DiskFull, ConfigError (worktree that must not be
        handed out) or InvalidOutput (a command that cannot be started: too long, NUL bytes).
        """
        ...


class Bubblewrap:
    """Namespaces by `bwrap` (0.8 or newer): the worktree at /workspace, a read-only system, nothing else of the host."""

    name = "bubblewrap"

    def __init__(self, limits: Limits, toolchain: tuple[Path, ...] | None = None) -> None:
        self.limits = limits
        self.toolchain = default_toolchain() if toolchain is None else toolchain

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        worktree: Path,
        timeout_seconds: float | None = None,
        network: bool = False,
        environment: Mapping[str, str] = {},
        binds: Sequence[Bind] = (),
        stdin: bytes = b"",
    ) -> CommandResult:
        worktree = _checked_worktree(worktree)
        with ExitStack() as files, _lifeline() as lifeline:
            status = files.enter_context(_content(b""))
            hidden, handed = self._hidden(worktree, binds, files)
            arguments = [
                _found("bwrap"), *_ISOLATION, "--json-status-fd", str(status.fileno()),
                *(["--share-net"] if network else []), *self._system(network),
                "--bind", str(worktree), WORKSPACE, *hidden, *_binds(worktree, binds),
                "--remount-ro", "/", "--chdir", WORKSPACE, "--",
                *_limited(command, self.limits, lifeline, "-1"),
            ]  # fmt: skip
            result = await _execute(
                arguments,
                cwd=worktree,
                environment={**_environment(_HOME, self._path()), **environment},
                limits=self.limits,
                timeout_seconds=timeout_seconds or self.limits.timeout_seconds,
                stdin=stdin,
                pass_fds=(status.fileno(), lifeline, *handed),
            )
            # bwrap reports an exit code only when it came as far as starting the command.
            if result.exit_code == 1 and b"exit-code" not in os.pread(status.fileno(), 65536, 0):
                raise SandboxUnavailable(f"bubblewrap could not start a command: {result.output.strip()!r:.500}")
            return result

    def _path(self) -> str:
        return ":".join([*(str(p / "bin") for p in self.toolchain), _SYSTEM_PATH])

    def _system(self, network: bool) -> list[str]:
        size = str(self.limits.tmp_bytes)
        arguments = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            folder = Path("/", name)
            if folder.is_symlink():
                arguments += ["--symlink", str(folder.readlink()), str(folder)]
            elif folder.is_dir():
                arguments += ["--ro-bind", str(folder), str(folder)]
        for name in (*_ETC, *(_NETWORK_ETC if network else ())):
            arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
        arguments += ["--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", _HOME]  # noqa: S108
        for path in self.toolchain:
            arguments += ["--ro-bind", str(path), str(path)]
        return arguments

    def _hidden(self, worktree: Path, binds: Sequence[Bind], files: ExitStack) -> tuple[list[str], list[int]]:
        """Made-up files: who the user is, and an empty `.git` where a linked worktree names the host's repository."""
        content = dict(_IDENTITY)
        pointer = worktree / ".git"
        if pointer.is_file() and not pointer.is_symlink() and all(b.target != f"{WORKSPACE}/.git" for b in binds):
            content[f"{WORKSPACE}/.git"] = ""
        arguments, handed = [], []
        for target, text in content.items():
            number = files.enter_context(_content(text.encode())).fileno()
            arguments += ["--ro-bind-data", str(number), target]
            handed.append(number)
        return arguments, handed


class Unsandboxed:
    """No isolation: the user's rights, the host's files and network. Limits, time-out and a clean environment remain.

    `binds` are ignored, and a command that starts a new session survives its end.
    """

    name = "none"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        log.warning(
            "sandbox=none: commands of agents and repositories run WITHOUT isolation, with all rights of this user; "
            "use it only in a container or machine that may be lost"
        )

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        worktree: Path,
        timeout_seconds: float | None = None,
        network: bool = False,
        environment: Mapping[str, str] = {},
        binds: Sequence[Bind] = (),
        stdin: bytes = b"",
    ) -> CommandResult:
        worktree = _checked_worktree(worktree)
        path = ":".join([*(str(p / "bin") for p in default_toolchain()), _SYSTEM_PATH])
        with (
            _lifeline() as lifeline,
            naming_a_full_disk("a home for a command"),
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        ):
            return await _execute(
                _limited(command, self.limits, lifeline, "0"),
                cwd=worktree,
                environment={**_environment(home, path), "TMPDIR": home, **environment},
                limits=self.limits,
                timeout_seconds=timeout_seconds or self.limits.timeout_seconds,
                stdin=stdin,
                pass_fds=(lifeline,),
            )


def open_sandbox(settings: Settings) -> Sandbox:
    """The sandbox the settings name, after really starting a command in it. Raises SandboxUnavailable."""
    limits = Limits(
        timeout_seconds=settings.command_timeout_seconds,
        output_bytes=settings.command_output_bytes,
        memory_bytes=settings.command_memory_bytes,
    )
    if settings.sandbox == "none":
        return Unsandboxed(limits)
    _probe()
    return Bubblewrap(limits)


def default_toolchain() -> tuple[Path, ...]:
    """Prefixes of this Python (venv, base) and of node that lie outside /usr; never a folder that holds a home."""
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent]
    node = shutil.which("node")
    found = [*python, *([Path(node).resolve().parent.parent] if node else [])]
    homes = {Path.home(), Path.home().resolve()}
    wanted = [p for p in dict.fromkeys(found) if not p.is_relative_to("/usr")]
    return tuple(p for p in wanted if p != Path("/") and not any(h.is_relative_to(p) for h in homes))


@contextmanager
def naming_a_full_disk(what: str) -> Iterator[None]:
    """Turn "no space" and "over quota" into DiskFull; `what` says what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left while writing {what} ({error.filename!r}); free some and run again"
            ) from error
        raise


def _probe() -> None:
    system = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")  # noqa: S108
    try:
        subprocess.run(
            [_found("bwrap"), *_ISOLATION, *system, "--", _found("prlimit"), "--core=0", "true"],
            check=True, capture_output=True, timeout=_PROBE_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise SandboxUnavailable(
            f"bubblewrap does not work here ({said.decode(errors='replace').strip()!r:.300}): install bubblewrap 0.8 or "
            "newer and allow user namespaces, or choose `sandbox: none` if this machine may be lost"
        ) from error


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        package = {"bwrap": "bubblewrap", "prlimit": "util-linux"}[program]
        raise SandboxUnavailable(
            f"{program!r} is not installed: install the package {package!r}, or choose `sandbox: none` if this machine may be lost"
        )
    return path


def _checked_worktree(worktree: Path) -> Path:
    """WS1: the folder that is handed out is a real one, and holds neither the user's home nor the system."""
    if worktree.is_symlink() or not worktree.is_dir():
        raise ConfigError(f"cannot run in {str(worktree)!r}: it is not a folder")
    path = worktree.resolve()
    if Path.home().resolve().is_relative_to(path) or path.is_relative_to("/usr"):
        raise ConfigError(f"cannot run in {str(path)!r}: it holds the user's home or the system")
    return path


def _binds(worktree: Path, binds: Sequence[Bind]) -> list[str]:
    arguments: list[str] = []
    for bind in binds:
        target = PurePosixPath(bind.target)
        if not target.is_absolute() or ".." in target.parts:
            raise ConfigError(f"bind target {bind.target!r} must be an absolute path")
        if target.is_relative_to(WORKSPACE):
            _refuse_links(worktree, target.relative_to(WORKSPACE))
        arguments += ["--bind" if bind.writable else "--ro-bind", str(bind.source.absolute()), str(target)]
    return arguments


def _refuse_links(worktree: Path, relative: PurePosixPath) -> None:
    """bwrap follows links when it makes a mount point, so a planted one could lead it out of the worktree."""
    path = worktree
    for part in relative.parts:
        path = path / part
        if path.is_symlink():
            raise InvalidOutput(f"{str(relative)!r} in the worktree was replaced by a link")


def _environment(home: str, path: str) -> dict[str, str]:
    fixed = {"LANG": "C.UTF-8", "TERM": "dumb", "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"PATH": path, "HOME": home, **fixed}


def _limited(command: Sequence[str] | str, limits: Limits, lifeline: int, everything: Literal["-1", "0"]) -> list[str]:
    """The command behind `prlimit`, which needs no code between fork and exec, and watched by its lifeline.

    Limits never exceed our own. `everything` is what `kill` takes for all processes of the command: `-1` in a pid
    namespace, `0` for the process group.
    """
    wanted = {
        "core": (resource.RLIMIT_CORE, 0),
        "fsize": (resource.RLIMIT_FSIZE, limits.file_bytes),
        "nofile": (resource.RLIMIT_NOFILE, limits.open_files),
        "nproc": (resource.RLIMIT_NPROC, limits.processes),
        "data": (resource.RLIMIT_DATA, limits.memory_bytes),
    }
    options = []
    for name, (kind, value) in wanted.items():
        hard = resource.getrlimit(kind)[1]
        options.append(f"--{name}={value if hard == resource.RLIM_INFINITY else min(value, hard)}")
    arguments = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    watched = ["/bin/sh", "-c", _WATCHED, "sh", str(lifeline), everything]
    return [*watched, _found("prlimit"), *options, "--", *arguments]


@contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe that ends with this process, however that ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def _content(data: bytes) -> Iterator[IO[bytes]]:
    """An unnamed file that holds `data`, at its beginning."""
    with naming_a_full_disk("a temporary file"), tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


class _Capture(asyncio.Protocol):
    """Keeps the first and last part of what arrives, whatever its length, and calls `on_flood` when it is too much."""

    def __init__(self, output_bytes: int, flood_bytes: int) -> None:
        self._half = max(output_bytes - 64, 0) // 2  # 64: room for the marker
        self._limit, self._flood = output_bytes, flood_bytes
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        self.closed = asyncio.Event()
        self.on_flood: Callable[[], None] = lambda: None

    @property
    def flooded(self) -> bool:
        return self._total > self._flood

    def data_received(self, data: bytes) -> None:
        self._total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: -(self._limit - self._half)]
        if self.flooded:
            self.on_flood()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def text(self) -> str:
        if self._total <= self._limit:
            return (self._head + self._tail).decode(errors="replace")
        head, tail = self._head, self._tail[len(self._tail) - self._half :]
        marker = f"\n[... {self._total - 2 * self._half} bytes left out ...]\n"
        return head.decode(errors="replace") + marker + tail.decode(errors="replace")


async def _execute(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    limits: Limits,
    timeout_seconds: float,
    stdin: bytes,
    pass_fds: Sequence[int] = (),
) -> CommandResult:
    capture = _Capture(limits.output_bytes, limits.flood_factor * limits.output_bytes)
    started = time.monotonic()
    timed_out = False
    async with _pipe_into(capture) as write_end:
        with _content(stdin) as source, write_end:
            spawning = asyncio.create_task(_spawn(arguments, cwd, environment, source, write_end, pass_fds))
            process = await _whole(spawning)
        capture.on_flood = lambda: _kill(process)
        try:
            async with asyncio.timeout(timeout_seconds):
                await process.wait()
        except TimeoutError:
            timed_out = True
        finally:
            await _end(process, capture)
    return CommandResult(
        exit_code=await process.wait(),
        output=capture.text(),
        seconds=time.monotonic() - started,
        timed_out=timed_out,
        flooded=capture.flooded,
    )


@asynccontextmanager
async def _pipe_into(capture: _Capture) -> AsyncIterator[IO[bytes]]:
    """The writing end of a pipe whose content goes to `capture`. A pipe of our own: a daemon that keeps it open
    must not keep us waiting, and asyncio's subprocess pipes cannot be closed before their end."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as write_end:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: capture, os.fdopen(reading, "rb", buffering=0)
        )
        try:
            yield write_end
        finally:
            transport.close()


async def _spawn(
    arguments: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    stdin: IO[bytes],
    stdout: IO[bytes],
    pass_fds: Sequence[int],
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *arguments, cwd=cwd, env=environment, stdin=stdin, stdout=stdout, stderr=stdout,
            start_new_session=True, pass_fds=tuple(pass_fds),
        )  # fmt: skip
    except ValueError as error:
        raise InvalidOutput(f"the command cannot be started: {error}") from None
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise InvalidOutput("the command cannot be started: it is too long; put the text into a file") from None
        raise SandboxUnavailable(f"cannot start {arguments[0]!r}: {error}") from error


async def _whole(spawning: asyncio.Task[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """The started process, or none at all: asyncio itself, cancelled while it starts one, kills the leader only."""
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        await asyncio.wait([spawning])
        if spawning.exception() is None:
            _kill(spawning.result())
            await spawning.result().wait()
        raise


async def _end(process: asyncio.subprocess.Process, capture: _Capture) -> None:
    """Nothing of the command outlives this: killing bwrap ends its pid namespace, whatever was daemonised inside."""
    _kill(process)
    await process.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            await capture.closed.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
