"""Running one command that nobody trusts: what it may see, how much it may use, and that nothing of it is left.

Owns isolation and limits, with bubblewrap; `infra.containers` has those of docker and podman. It does not know git,
tickets or what a command is for.
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

from infra.egress import Egress, door_beside, door_inside
from infra.errors import ConfigError, InvalidOutput, SandboxUnavailable
from infra.files import naming_a_full_disk
from infra.llm import Frozen
from infra.settings import Settings

log = logging.getLogger(__name__)

WORKSPACE = "/workspace"
HOME = "/home/agent"
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
_NETWORK_ETC = ("resolv.conf", "nsswitch.conf")
# Not the whole of /etc/ssl: the machine's own private keys lie there, and for a factory that runs as root they are readable.
_TRUST_ETC = (
    "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/tls/certs", "pki/tls/cert.pem", "pki/ca-trust/extracted",
    "ca-certificates",
)  # fmt: skip
_IDENTITY = {
    "/etc/passwd": f"agent:x:1000:1000:agent:{HOME}:/bin/sh\n",
    "/etc/group": "agent:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}


class Bind(Frozen):
    """A host file or folder that the command sees at the absolute path `target`. Without a sandbox there are none."""

    source: Path
    target: str
    writable: bool = False


class CommandResult(Frozen):
    """How a command ended. `exit_code` is negative when a signal killed it.

    `output` is stdout and stderr as they came, at most `Limits.output_bytes`: when more was written, the first and
    the last half around a line that says how much is missing. `flooded`: it wrote so much that it was killed.
    `refused`: each `host:port` that it asked for and that its egress does not name.
    """

    exit_code: int
    output: str
    seconds: float
    timed_out: bool = False
    flooded: bool = False
    refused: tuple[str, ...] = ()


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
    """As in the settings: `bubblewrap`, `docker`, `podman` or `none`; only with `none` paths are the host's own."""

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
        egress: Egress | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        """Run an argument list, or a string by `/bin/sh -c`, with the worktree as the only writable place and cwd.

        `egress` opens a way to what it names and nothing else: `HTTP_PROXY` and its like are set inside, and the text
        `{gateway}` in arguments and environment values becomes the gateway's address. It excludes `network`, which
        opens the host's. `on_output` gets the output's bytes as they come, even those that the result leaves out; it
        must neither block nor raise. Cancelling kills the command. Raises SandboxUnavailable, DiskFull, ConfigError (worktree that must not be
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
        egress: Egress | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        worktree = checked_worktree(worktree, network, egress)
        async with door_inside(egress) as door:
            with ExitStack() as files, lifeline() as line:
                status = files.enter_context(content(b""))
                hidden, handed = self._hidden(worktree, binds, files)
                etc = (*(_TRUST_ETC if network or egress else ()), *(_NETWORK_ETC if network else ()))
                arguments = [
                    _found("bwrap"), *_ISOLATION, "--json-status-fd", str(status.fileno()),
                    *(["--share-net"] if network else []), *self._system(etc),
                    "--bind", str(worktree), WORKSPACE, *_binds(worktree, binds), *hidden,
                    "--remount-ro", "/", "--chdir", WORKSPACE, "--",
                    *_limited(door.command(command), self.limits, line, "-1", door.launcher),
                ]  # fmt: skip
                result = await execute(
                    arguments,
                    cwd=worktree,
                    environment={**fixed_environment(HOME), "PATH": self._path(), **door.environment(environment)},
                    limits=self.limits,
                    timeout_seconds=timeout_seconds or self.limits.timeout_seconds,
                    stdin=stdin,
                    pass_fds=(status.fileno(), line, *door.handed, *handed),
                    on_output=on_output,
                )
                # bwrap reports an exit code only when it came as far as starting the command.
                if result.exit_code == 1 and b"exit-code" not in os.pread(status.fileno(), 65536, 0):
                    raise SandboxUnavailable(f"bubblewrap could not start a command: {result.output.strip()!r:.500}")
            return result.model_copy(update={"refused": door.refused})

    def _path(self) -> str:
        return ":".join([*(str(p / "bin") for p in self.toolchain), _SYSTEM_PATH])

    def _system(self, etc: Sequence[str]) -> list[str]:
        size = str(self.limits.tmp_bytes)
        arguments = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            folder = Path("/", name)
            if folder.is_symlink():
                arguments += ["--symlink", str(folder.readlink()), str(folder)]
            elif folder.is_dir():
                arguments += ["--ro-bind", str(folder), str(folder)]
        for name in (*_ETC, *etc):
            arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
        arguments += ["--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", HOME]  # noqa: S108
        for path in self.toolchain:
            arguments += ["--ro-bind", str(path), str(path)]
        return arguments

    def _hidden(self, worktree: Path, binds: Sequence[Bind], files: ExitStack) -> tuple[list[str], list[int]]:
        """Made-up files: who the user is, and an empty `.git` where a linked worktree names the host's repository."""
        made_up = dict(_IDENTITY)
        if must_hide_git_pointer(worktree, binds):
            made_up[f"{WORKSPACE}/.git"] = ""
        arguments, handed = [], []
        for target, text in made_up.items():
            number = files.enter_context(content(text.encode())).fileno()
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
        egress: Egress | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        worktree = checked_worktree(worktree, network, egress)
        path = ":".join([*(str(p / "bin") for p in default_toolchain()), _SYSTEM_PATH])
        async with door_beside(egress) as door:
            with (
                lifeline() as line,
                naming_a_full_disk("a home for a command"),
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
            ):
                own = {"PATH": path, "TMPDIR": home}
                result = await execute(
                    _limited(door.command(command), self.limits, line, "0"),
                    cwd=worktree,
                    environment={**fixed_environment(home), **own, **door.environment(environment)},
                    limits=self.limits,
                    timeout_seconds=timeout_seconds or self.limits.timeout_seconds,
                    stdin=stdin,
                    pass_fds=(line,),
                    on_output=on_output,
                )
            return result.model_copy(update={"refused": door.refused})


def open_sandbox(settings: Settings) -> Sandbox:
    """The sandbox the settings name, after really starting a command in it. Raises SandboxUnavailable."""
    limits = Limits(
        timeout_seconds=settings.command_timeout_seconds,
        output_bytes=settings.command_output_bytes,
        memory_bytes=settings.command_memory_bytes,
    )
    if settings.sandbox == "none":
        return Unsandboxed(limits)
    if settings.sandbox != "bubblewrap":
        from infra.containers import open_containers  # it stands on this module

        return open_containers(settings.sandbox, _image(settings), limits)
    _probe()
    return Bubblewrap(limits)


def _image(settings: Settings) -> str:
    if settings.sandbox_image is None:
        raise ConfigError(f"`sandbox: {settings.sandbox}` needs `sandbox_image`: an image with git and your toolchain")
    return settings.sandbox_image


def default_toolchain() -> tuple[Path, ...]:
    """Prefixes of this Python (venv, base) and of node that lie outside /usr; never a folder that holds a home."""
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent]
    node = shutil.which("node")
    found = [*python, *([Path(node).resolve().parent.parent] if node else [])]
    homes = {Path.home(), Path.home().resolve()}
    wanted = [p for p in dict.fromkeys(found) if not p.is_relative_to("/usr")]
    return tuple(p for p in wanted if p != Path("/") and not any(h.is_relative_to(p) for h in homes))


def _probe() -> None:
    system = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")  # noqa: S108
    try:
        subprocess.run(
            [_found("bwrap"), *_ISOLATION, *system, "--", _found("prlimit"), "--core=0", "true"],
            env={"PATH": _SYSTEM_PATH}, check=True, capture_output=True, timeout=_PROBE_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise SandboxUnavailable(
            f"bubblewrap does not work here ({said.decode(errors='replace').strip()!r:.300}): install bubblewrap 0.8 or "
            "newer and allow user namespaces, or choose `sandbox: docker`, `sandbox: podman`, or, if this machine may be lost, "
            "`sandbox: none`"
        ) from error


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        package = {"bwrap": "bubblewrap", "prlimit": "util-linux"}[program]
        raise SandboxUnavailable(
            f"{program!r} is not installed: install the package {package!r}, or choose `sandbox: none` if this machine may be lost"
        )
    return path


def checked_worktree(worktree: Path, network: bool, egress: Egress | None) -> Path:
    """WS1: the folder that is handed out is a real one, and holds neither the user's home nor the system."""
    if network and egress is not None:
        raise ConfigError("`network` opens everything and `egress` only what it names: choose one of them")
    if worktree.is_symlink() or not worktree.is_dir():
        raise ConfigError(f"cannot run in {str(worktree)!r}: it is not a folder")
    path = worktree.resolve()
    if path != Path(os.path.abspath(worktree)):  # noqa: PTH100  without following links
        raise ConfigError(f"cannot run in {str(worktree)!r}: a link on the way leads to {str(path)!r}; remove it")
    if Path.home().resolve().is_relative_to(path) or path.is_relative_to("/usr"):
        raise ConfigError(f"cannot run in {str(path)!r}: it holds the user's home or the system")
    return path


def _binds(worktree: Path, binds: Sequence[Bind]) -> list[str]:
    arguments: list[str] = []
    for bind in binds:
        target = checked_target(worktree, bind)
        arguments += ["--bind" if bind.writable else "--ro-bind", str(bind.source.absolute()), str(target)]
    return arguments


def checked_target(worktree: Path, bind: Bind) -> PurePosixPath:
    """Where the bind goes. Raises ConfigError (not a plain absolute path) or InvalidOutput (a planted link)."""
    target = PurePosixPath(bind.target)
    if not target.is_absolute() or ".." in target.parts:
        raise ConfigError(f"bind target {bind.target!r} must be an absolute path")
    if target.is_relative_to(WORKSPACE):
        _refuse_links(worktree, target.relative_to(WORKSPACE))
    return target


def must_hide_git_pointer(worktree: Path, binds: Sequence[Bind]) -> bool:
    """Whether the worktree's `.git` is a file, which names the host's repository, and nothing is put over it."""
    pointer = worktree / ".git"
    return pointer.is_file() and not pointer.is_symlink() and all(b.target != f"{WORKSPACE}/.git" for b in binds)


def _refuse_links(worktree: Path, relative: PurePosixPath) -> None:
    """Links are followed when a mount point is made, so a planted one could lead out of the worktree."""
    path = worktree
    for part in relative.parts:
        path = path / part
        if path.is_symlink():
            raise InvalidOutput(f"{str(relative)!r} in the worktree was replaced by a link")


def fixed_environment(home: str) -> dict[str, str]:
    """What every command finds in its environment, besides PATH."""
    return {"HOME": home, "LANG": "C.UTF-8", "TERM": "dumb", "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _limited(
    command: Sequence[str] | str,
    limits: Limits,
    line: int,
    everything: Literal["-1", "0"],
    launcher: Sequence[str] = (),
) -> list[str]:
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
    options = [f"--{name}={within_ours(kind, value)}" for name, (kind, value) in wanted.items()]
    watched = ["/bin/sh", "-c", _WATCHED, "sh", str(line), everything]
    return [*watched, *launcher, _found("prlimit"), *options, "--", *argument_list(command)]


def within_ours(kind: int, value: int) -> int:
    """`value`, or our own hard limit of this kind where that is lower: nobody but root may raise it."""
    hard = resource.getrlimit(kind)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def argument_list(command: Sequence[str] | str) -> list[str]:
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)


@contextmanager
def lifeline() -> Iterator[int]:
    """The reading end of a pipe that ends with this process, however that ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def content(data: bytes) -> Iterator[IO[bytes]]:
    """An unnamed file that holds `data`, at its beginning."""
    with naming_a_full_disk("a temporary file"), tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


class _Capture(asyncio.Protocol):
    """Keeps the first and last part of what arrives, whatever its length, and calls `on_flood` when it is too much.

    `on_output` gets everything.
    """

    def __init__(self, output_bytes: int, flood_bytes: int, on_output: Callable[[bytes], None] | None) -> None:
        self._half = max(output_bytes - 64, 0) // 2  # 64: room for the marker
        self._limit, self._flood = output_bytes, flood_bytes
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        self._on_output = on_output
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
        if self._on_output is not None:
            self._on_output(data)
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


async def execute(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    limits: Limits,
    timeout_seconds: float,
    stdin: bytes,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
    stderr: IO[bytes] | None = None,
) -> CommandResult:
    """Start a program in a session of its own, take in what it prints, and kill that session at the end or in time.

    `stderr` None: in the order it came with the output.
    """
    capture = _Capture(limits.output_bytes, limits.flood_factor * limits.output_bytes, on_output)
    started = time.monotonic()
    timed_out = False
    async with _pipe_into(capture) as write_end:
        with content(stdin) as source, write_end:
            spawning = asyncio.create_task(
                _spawn(arguments, cwd, environment, source, write_end, stderr or write_end, pass_fds)
            )
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
    stderr: IO[bytes],
    pass_fds: Sequence[int],
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *arguments, cwd=cwd, env=environment, stdin=stdin, stdout=stdout, stderr=stderr,
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
