"""The embedded model server: llama.cpp in a process of its own, one per home folder, restarted when it dies.

`python -m infra.llm.local supervise …` is the detached parent, `… serve …` the child that loads the weights. The parent
holds a lock on `<home>/run/model.alive` for as long as it lives, so a home never has two servers, whoever is killed when.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ConfigError, Unreachable
from infra.llm import Completion, ModelRequest, Tier
from infra.llm.openai_api import OpenAIClient

START_SECONDS = 180.0
"""Longest wait for a server to become healthy: loading takes 4-6 s on an idle two-core machine."""
STOP_SECONDS = 10.0
MAX_QUICK_DEATHS = 4
QUICK_SECONDS = 60.0
"""The supervisor gives up after that many deaths in a row, each within that time of its start."""
ALREADY_ALIVE = 3
"""Exit status of a supervisor that found another one."""
HOST = "127.0.0.1"
SERVE_COMMAND = (sys.executable, "-m", "infra.llm.local", "serve")
LOG_BYTES = 10 << 20
"""A log beyond this size is put aside (one old log is kept) when a server starts."""
HOST_CACHE_MIB = 1024
"""Memory for prompts that left their slot: about 28 KiB a token, so some 36,000 tokens."""


class ServerRecord(BaseModel):
    """`<home>/run/model.json`. `started` tells a living supervisor from a recycled process id."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pid: int
    started: str
    port: int
    weights: str
    slots: int
    context_tokens: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        return process_started(self.pid) == self.started

    def serves(self, weights: Path, slots: int, context_tokens: int) -> bool:
        return (self.weights, self.slots, self.context_tokens) == (str(weights), slots, context_tokens)


def process_started(pid: int) -> str | None:
    """When the process began, as the system words it; None when there is no such process (or only a zombie)."""
    if not Path("/proc/self/stat").exists():
        command, environment = ["ps", "-o", "lstart=", "-p", str(pid)], {"PATH": os.defpath, "LC_ALL": "C"}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def read_record(home: Path) -> ServerRecord | None:
    """The recorded server, or None when nothing (readable) is recorded. Says nothing about its health."""
    try:
        return ServerRecord.model_validate_json(_record_path(home).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def ensure_server(
    home: Path,
    weights: Path,
    slots: int = 1,
    context_tokens: int = 16_384,
    *,
    serve_command: Sequence[str] = SERVE_COMMAND,
) -> str:
    """Return the base URL (no `/v1`) of a healthy server of these weights; start one when there is none.

    `context_tokens` is shared by all slots. Any number of processes may call this at once: one server comes up.
    A server with other weights or sizes is replaced. `serve_command` takes the options of the role `serve`.
    Raises ConfigError (no such weights) or Unreachable (it does not start; the message has the end of its log).
    """
    if not weights.is_file():
        raise ConfigError(f"there are no model weights at {str(weights)!r}; correct or unset `weights_path`")
    home, weights = home.absolute(), weights.absolute()
    (home / "run").mkdir(parents=True, exist_ok=True)
    with _locked(home / "run" / "model.lock"):
        record = _living(home)
        if record and not record.serves(weights, slots, context_tokens):
            stop_server(home)
        if not _living(home):
            _start(home, weights, slots, context_tokens, serve_command)
        return _healthy_url(home)


def stop_server(home: Path) -> bool:
    """End the recorded server and its child. Returns False when none was running. Never touches a recycled pid."""
    record = read_record(home)
    if not (record and record.alive):
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(record.pid, number)
        if _wait_for(lambda: not record.alive, STOP_SECONDS):
            break
    _record_path(home).unlink(missing_ok=True)
    return True


def is_healthy(url: str) -> bool:
    """True when `/health` says that the model is loaded."""
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


class LocalClient:
    """`ModelClient` of the embedded server: starts it when needed, and once more when it is gone mid-way."""

    tier: Tier

    def __init__(
        self,
        name: str,
        start: Callable[[], str],
        tier: Tier = "small",
        context_tokens: int = 8_192,
        timeout_seconds: float = 300,
    ) -> None:
        """`start` returns the base URL of a healthy server (`ensure_server` with its arguments bound)."""
        self.name, self.tier, self.context_tokens = name, tier, context_tokens
        self._start, self._timeout_seconds = start, timeout_seconds
        self._client: OpenAIClient | None = None

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As the protocol says. A dead server is started again and asked a second time, once."""
        client = self._client or await self._connect()
        try:
            return await client.complete(request, on_text)
        except Unreachable:
            return await (await self._connect()).complete(request, on_text)

    async def check(self) -> str:
        return await (await self._connect()).check()

    async def _connect(self) -> OpenAIClient:
        url = await asyncio.to_thread(self._start)
        self._client = OpenAIClient(
            name=self.name,
            base_url=f"{url}/v1",
            tier=self.tier,
            context_tokens=self.context_tokens,
            timeout_seconds=self._timeout_seconds,
            extra_body={"cache_prompt": True},
        )
        return self._client


def _record_path(home: Path) -> Path:
    return home / "run" / "model.json"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases when this process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _living(home: Path) -> ServerRecord | None:
    record = read_record(home)
    return record if record and record.alive else None


def _start(home: Path, weights: Path, slots: int, context_tokens: int, serve_command: Sequence[str]) -> None:
    """Start a detached supervisor and wait for a living record: its own, or one of a supervisor that was there first."""
    sizes = ["--slots", str(slots), "--context-tokens", str(context_tokens)]
    command = [sys.executable, "-m", "infra.llm.local", "supervise", "--home", str(home), "--weights", str(weights)]
    with _open_log(home) as log:
        process = subprocess.Popen(
            [*command, *sizes, "--", *serve_command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_server_environment(),
            cwd=home,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # reaps it, should it end before this process
    _wait_for(lambda: _living(home) is not None or process.poll() not in (None, ALREADY_ALIVE), START_SECONDS)
    if not _living(home):
        raise Unreachable(f"the model server did not start (exit status {process.poll()}){_log_hint(home)}")


def _healthy_url(home: Path) -> str:
    """Wait for `/health`. A server that is up but never becomes healthy is ended, so that the next call starts afresh."""

    def settled() -> bool:
        record = _living(home)
        return record is None or is_healthy(record.url)

    _wait_for(settled, START_SECONDS)
    record = _living(home)
    if not (record and is_healthy(record.url)):
        stop_server(home)
        raise Unreachable(f"the model server is not healthy and was ended; run again{_log_hint(home)}")
    return record.url


def _open_log(home: Path) -> BinaryIO:
    path = home / "logs" / "model.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _log_hint(home: Path) -> str:
    path = home / "logs" / "model.log"
    lines = path.read_text(errors="replace").splitlines()[-3:] if path.exists() else []
    return f"; look into {str(path)!r}, which ends with:\n  " + "\n  ".join(line[:300] for line in lines)


def _server_environment() -> dict[str, str]:
    """No tokens reach the server. Passive waiting: spinning threads would starve the tests that run beside it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    package_root = str(Path(__file__).resolve().parents[2])
    return {**kept, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": package_root, "PYTHONUNBUFFERED": "1"}


def supervise(home: Path, weights: Path, slots: int, context_tokens: int, serve_command: Sequence[str]) -> int:
    """Keep one server child alive until told to stop. Returns the exit status of the supervisor."""
    with (home / "run" / "model.alive").open("a+") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alive.seek(0)
            print(f"process {alive.read().strip()} already supervises the model server of this home", flush=True)
            return ALREADY_ALIVE
        alive.truncate(0)
        print(os.getpid(), file=alive, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        sizes = ["--weights", str(weights), "--slots", str(slots), "--context-tokens", str(context_tokens)]
        record = {"weights": str(weights), "slots": slots, "context_tokens": context_tokens}
        return _restart_while_useful(home, [*serve_command, *sizes], record)


def _restart_while_useful(home: Path, command: Sequence[str], record: dict[str, Any]) -> int:
    """The port is kept across restarts, so that the recorded URL stays right, unless somebody took it meanwhile."""
    pid, port, quick_deaths = os.getpid(), 0, 0
    while quick_deaths < MAX_QUICK_DEATHS:
        began = time.monotonic()
        child, port = _serve_once(home, command, port)
        if port:
            _write_record(home, {**record, "pid": pid, "started": process_started(pid), "port": port})
        status = child.wait()
        quick_deaths = quick_deaths + 1 if time.monotonic() - began < QUICK_SECONDS else 0
        print(f"model server ended status={status} quick_deaths={quick_deaths}", flush=True)
        time.sleep(0.1 * 2**quick_deaths if quick_deaths < MAX_QUICK_DEATHS else 0)
    return 1


def _serve_once(home: Path, command: Sequence[str], port: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the child and wait for its port; 0 when it ended before it had one."""
    port_file = home / "run" / "model.port"
    port_file.unlink(missing_ok=True)
    child = subprocess.Popen([*command, "--port", str(port), "--port-file", str(port_file)])
    _wait_for(lambda: port_file.exists() or child.poll() is not None, START_SECONDS)
    return child, int(port_file.read_text()) if port_file.exists() else 0


def _write_record(home: Path, record: dict[str, Any]) -> None:
    path = _record_path(home)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record))
    draft.replace(path)


def serve(weights: Path, slots: int, context_tokens: int, port: int, port_file: Path) -> None:
    """Load the weights and answer until killed, or until the supervisor is gone."""
    import xllamacpp

    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), weights, slots, context_tokens, port))
    draft = port_file.with_suffix(".draft")
    draft.write_text(server.listening_address.rpartition(":")[2])
    draft.replace(port_file)
    threading.Event().wait()


def _parameters(params: Any, weights: Path, slots: int, context_tokens: int, port: int) -> Any:
    """The measured settings.

    A slot reuses its own last prompt, and through the host cache those of idle slots, but never the prompt of a call
    that is being answered at the same time (`kv_unified` changes nothing about that).
    """
    params.model.path, params.model_alias = str(weights), {weights.stem}
    params.n_ctx, params.n_parallel, params.use_jinja, params.warmup = context_tokens, slots, True, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.hostnames, params.port = [HOST], port
    params.cache_ram_mib = HOST_CACHE_MIB
    params.ui = params.endpoint_slots = False
    params.cors_origins = f"http://{HOST}"  # the default lets every page in a browser of this machine ask
    params.verbosity = 2
    return params


def end_with_parent(parent: int) -> None:
    """End this process when its parent is no longer `parent`: no server outlives a killed supervisor."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """`supervise` or `serve`; started by `ensure_server`, not by people."""
    parser = argparse.ArgumentParser(prog="python -m infra.llm.local")
    roles = parser.add_subparsers(dest="role", required=True)
    supervisor, server = roles.add_parser("supervise"), roles.add_parser("serve")
    for role in (supervisor, server):
        role.add_argument("--weights", type=Path, required=True)
        role.add_argument("--slots", type=int, required=True)
        role.add_argument("--context-tokens", type=int, required=True)
    supervisor.add_argument("--home", type=Path, required=True)
    supervisor.add_argument("serve_command", nargs="+")
    server.add_argument("--port", type=int, default=0)
    server.add_argument("--port-file", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.role == "supervise":
        return supervise(given.home, given.weights, given.slots, given.context_tokens, given.serve_command)
    serve(given.weights, given.slots, given.context_tokens, given.port, given.port_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
