"""The sandbox by docker or podman: what `infra.sandbox` promises, with the tools of an image instead of this machine's."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import os
import re
import resource
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from infra.egress import Door, Egress, door_through
from infra.errors import SandboxUnavailable
from infra.processes import identity
from infra.sandbox import (
    HOME,
    WORKSPACE,
    Bind,
    CommandResult,
    Limits,
    argument_list,
    checked_target,
    checked_worktree,
    content,
    execute,
    fixed_environment,
    lifeline,
    must_hide_git_pointer,
    within_ours,
)

log = logging.getLogger(__name__)

_LABEL = "darkfactory.sandbox"
_DOOR = "/run/darkfactory"
_ENGINE_SECONDS = 60
_PODMAN_PROCESSES = 32_000
_RETRY_SECONDS = (0.1, 0.3, 1.0, 1.0, 1.0)

# stderr itself stays the engine's: its own words there tell a command that failed from one that was never started. The shell
# stays the first process: the kernel does not let that one be ended by its own signals, and it must not be the command.
_WRAPPED = 'exec 2>&1; "$@"; exit $?'
# The end of `run` does not end a container, so what watches for our sudden death removes it, and the folder of its door.
# More than once: the engine may be about to make it.
_WATCHED = (
    '( { read -r _ < "/dev/fd/$1"; kill -s KILL -- "$$"; rm -rf -- "$2"; '
    "for _ in 1 2 3 4 5 6; do $3; sleep 1; done; } < /dev/null > /dev/null 2>&1 & ); "
    'shift 3; exec "$@"'
)
_NOT_STARTED = re.compile(rb"^(?:docker: |Error: |time=\S+ level=(?:error|fatal))", re.MULTILINE)
_ENGINE_CODES = (125, 126, 127)
_CLIENT_VARIABLES = (
    "PATH", "HOME", "TMPDIR", "LANG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY",
    "CONTAINER_HOST", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF",
)  # fmt: skip
"""What the engine's client may find in its environment, of ours: where its engine and its own files are."""


class Containers:
    """One container of `image` for each command: no network, no capabilities, a read-only system.

    The image brings what commands need: a shell, git, the repository's toolchain, and python3 where egress is used. It is
    never downloaded here. `Limits.memory_bytes` is for all processes of a command together.
    """

    def __init__(self, engine: Literal["docker", "podman"], image: str, limits: Limits) -> None:
        self.name: str = engine
        self.image, self.limits = image, limits

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
        container = _new_name()
        async with door_through(egress, _DOOR) as door:
            inside = {**fixed_environment(HOME), **door.environment(environment)}
            shown, hidden = _variables(inside, environment)
            with lifeline() as line, content(b"") as said:
                result = await self._execute(
                    container,
                    [
                        *self._watched(container, line, door), *self._options(container, network), *shown,
                        *_mounts(worktree, binds, door), *(["--interactive"] if stdin else []),
                        self.image, "-c", _WRAPPED, "sh", *door.launcher, *argument_list(door.command(command)),
                    ],
                    cwd=Path("/"),
                    environment={**_client_environment(), **hidden},
                    limits=self.limits,
                    timeout_seconds=timeout_seconds or self.limits.timeout_seconds,
                    stdin=stdin,
                    pass_fds=(line,),
                    on_output=on_output,
                    stderr=said,
                )  # fmt: skip
                self._check_started(result, said)
        return result.model_copy(update={"refused": door.refused})

    async def _execute(self, container: str, arguments: Sequence[str], **options: Any) -> CommandResult:
        """As `execute`; killing the client does not end its container, so that is removed by name then."""
        over = False
        try:
            result = await execute(arguments, **options)
            over = not (result.timed_out or result.flooded)
            return result
        finally:
            if not over:
                await asyncio.shield(self._remove(container))

    async def _remove(self, container: str) -> None:
        """Tried again while the engine says that there is none: it may be just about to make it."""
        for seconds in _RETRY_SECONDS:
            remover = await asyncio.create_subprocess_exec(
                *self._remover(), container, env=_client_environment(),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if (await remover.communicate())[0].strip():  # the name of what it removed
                return
            await asyncio.sleep(seconds)

    def _remover(self) -> list[str]:
        grace = ["--time", "0"] if self.name == "podman" else []  # docker has none
        return [_client(self.name), "rm", "--force", "--volumes", *grace]

    def _watched(self, container: str, line: int, door: Door) -> list[str]:
        removal = " ".join([*self._remover(), container])
        return ["/bin/sh", "-c", _WATCHED, "sh", str(line), str(door.folder or ""), removal]

    def _options(self, container: str, network: bool) -> list[str]:
        limits = self.limits
        files = within_ours(resource.RLIMIT_NOFILE, limits.open_files)
        size = within_ours(resource.RLIMIT_FSIZE, limits.file_bytes)
        scratch = f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_bytes}"
        return [
            _client(self.name), "run", "--rm", "--pull", "never", "--name", container, "--label", _LABEL,
            *([] if network else ["--network", "none"]), "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--security-opt", "label=disable", "--log-driver", "none",
            "--user", f"{os.geteuid()}:{os.getegid()}", *self._of_podman(), "--hostname", "sandbox",
            "--tmpfs", f"/tmp:{scratch}", "--tmpfs", f"{HOME}:{scratch}", "--shm-size", str(limits.tmp_bytes),  # noqa: S108
            "--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes),
            "--pids-limit", str(limits.processes), "--ulimit", "core=0:0",
            "--ulimit", f"nofile={files}:{files}", "--ulimit", f"fsize={size}:{size}",
            "--workdir", WORKSPACE, "--entrypoint", "/bin/sh",
        ]  # fmt: skip

    def _of_podman(self) -> list[str]:
        """Podman asks for more processes than it may have itself where root is not almighty (`--pids-limit` is what binds);
        a rootless one would make the worktree somebody else's."""
        if self.name != "podman":
            return []
        own = [] if os.geteuid() == 0 else ["--userns", "keep-id"]
        most = within_ours(resource.RLIMIT_NPROC, _PODMAN_PROCESSES)
        return ["--ulimit", f"nproc={most}:{most}", *own]

    def _check_started(self, result: CommandResult, said: IO[bytes]) -> None:
        words = os.pread(said.fileno(), 4096, 0)
        if result.exit_code in _ENGINE_CODES and _NOT_STARTED.search(words):
            raise SandboxUnavailable(f"{self.name} could not start a command: {_text(words)}; is the engine well?")

    def check(self) -> None:
        """Start a command in a container. Raises SandboxUnavailable."""
        with tempfile.TemporaryDirectory() as folder:
            options = [*self._options(_new_name(), network=False), *_mounts(Path(folder), (), Door())]
            tried = self._ask(*options[1:], self.image, "-c", "git --version")
        if tried.returncode != 0:
            raise SandboxUnavailable(
                f"{self.name} cannot run {self.image!r} here ({_text(tried.stderr or tried.stdout)}): start the engine, fetch "
                f"the image (`{self.name} pull {self.image}`; it needs a shell and git), or choose another `sandbox`"
            )

    def sweep(self) -> None:
        """Remove the containers of factories that died, on this machine, before they could do so."""
        listed = self._ask("ps", "--all", "--filter", f"label={_LABEL}", "--format", "{{.Names}}")
        left = [name for name in listed.stdout.decode().split() if _is_left_over(name)]
        if left:
            log.warning("sandbox removes left-over containers count=%d", len(left))
            self._ask(*self._remover()[1:], *left)

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [_client(self.name), *arguments], env=_client_environment(), check=False,
                capture_output=True, stdin=subprocess.DEVNULL, timeout=_ENGINE_SECONDS,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, OSError) as error:
            raise SandboxUnavailable(f"{self.name} does not answer ({error}); start the engine again") from None


def open_containers(engine: Literal["docker", "podman"], image: str, limits: Limits) -> Containers:
    """The sandbox, after a command was really started in it and what dead factories left is gone. Raises SandboxUnavailable."""
    opened = Containers(engine, image, limits)
    opened.check()
    opened.sweep()
    return opened


def _client(engine: str) -> str:
    path = shutil.which(engine)
    if path is None:
        raise SandboxUnavailable(f"{engine!r} is not installed: install it, or choose another `sandbox`")
    return path


def _client_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ}


def _variables(inside: Mapping[str, str], given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Options that set `inside`, and what has to be in the client's environment for them.

    Arguments can be read by everybody on this machine, so values that were given are not among them.
    """
    hidden = {name: inside[name] for name in given if name not in _CLIENT_VARIABLES}
    texts = [name if name in hidden else f"{name}={value}" for name, value in inside.items()]
    return [part for text in texts for part in ("--env", text)], hidden


def _mounts(worktree: Path, binds: Sequence[Bind], door: Door) -> list[str]:
    """A later one replaces an earlier one with the same target; the engines refuse two."""
    wanted = {WORKSPACE: (worktree, True)}
    if must_hide_git_pointer(worktree, binds):
        wanted[f"{WORKSPACE}/.git"] = (Path("/dev/null"), False)
    if door.folder:
        wanted[_DOOR] = (door.folder, False)
    for bind in binds:
        wanted[str(checked_target(worktree, bind))] = (bind.source.absolute(), bind.writable)
    return [part for target, one in wanted.items() for part in ("--mount", _mount(one[0], target, one[1]))]


def _mount(source: Path, target: str, writable: bool) -> str:
    """The engines read this as a line of CSV, so a path may hold commas and quotes."""
    line = io.StringIO()
    access = [] if writable else ["readonly"]
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={source}", f"target={target}", *access])
    return line.getvalue()


def _new_name() -> str:
    """Unique, and telling whose it is: the machine's start, the process namespace, the process."""
    return "-".join(["darkfactory", *_machine(), str(os.getpid()), _began(os.getpid()), secrets.token_hex(4)])


def _is_left_over(name: str) -> bool:
    """Whether the process that made it is gone. A process of another namespace cannot be seen from here."""
    found = re.fullmatch(r"darkfactory-(\w+)-(\w+)-(\d+)-(\w+)-\w+", name)
    if found is None:
        return False
    boot, namespace = _machine()
    if found[1] != boot:
        return True
    return found[2] == namespace and _began(int(found[3])) != found[4]


def _machine() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return boot, f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except FileNotFoundError:  # not Linux
        return "host", "0"


def _began(pid: int) -> str:
    return re.sub(r"\W", "", identity(pid) or "gone")


def _text(words: bytes) -> str:
    return f"{words.decode(errors='replace').strip()!r:.300}"
