"""Prefect's surroundings: its settings, and the server a process talks to.

Prefect reads its settings when it is imported, so `choose_engine` comes before the first import of `flows` or `tasks`.
"""

from __future__ import annotations

import atexit
import base64
import ctypes
import functools
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ConfigError, Unreachable
from infra.files import write_atomically
from infra.llm.local import process_started
from infra.postgres import open_databases
from infra.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 180.0
"""Longest wait for a Prefect server: 15 s on an idle two-core machine with a new database, 40 s under load."""
STOP_SECONDS = 20.0
TAIL_BYTES = 4_096

LOGGING = Path(__file__).with_name("logging.yml")
"""How processes that import Prefect log."""

_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD)$", re.IGNORECASE)
_log = logging.getLogger(__name__)


class Child(BaseModel):
    """A process that was started here, with when it began, so that a recycled id is never taken for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        return process_started(self.pid) == self.started


class ServerRecord(BaseModel):
    """`<home>/run/prefect.json`, written by `darkfactory up`: its own process, its children and Prefect's address."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    up: Child
    children: tuple[Child, ...]
    api_url: str

    @property
    def ui_url(self) -> str:
        return self.api_url.removesuffix("/api")


class Engine:
    """The Prefect server this process uses: one that runs already, or (`port`) a temporary one of its own."""

    def __init__(self, settings: Settings, api_url: str, port: int | None = None) -> None:
        self.api_url = api_url
        self._settings, self._port = settings, port
        self._log = settings.root / "logs" / "prefect-temporary.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def temporary(self) -> bool:
        return self._port is not None

    def start(self) -> None:
        """Start the temporary server, if it is to be one; it comes up while other set-up goes on (`wait`)."""
        if self._port is not None and self._child is None:
            # its pages are not served, and nothing is scheduled by a server that ends with its run
            extra = ["--no-ui", "--no-scheduler", "--no-late-runs"]
            self._child = start_server(self._settings, self._port, self._log, extra)

    def wait(self) -> None:
        """Return when the server answers. Raises Unreachable when it ended or took too long."""
        wait_for_server(self.api_url, self._child, self._log if self.temporary else None)

    def stop(self) -> None:
        """End the temporary server; a server of others is left alone. May be called twice."""
        if self._child is not None:
            end_group(self._child)


def prepare_engine(settings: Settings, verbose: bool = False) -> None:
    """Point Prefect of this process at a healthy server, a temporary one when none runs. It ends with the process.

    Raises Unreachable when no server comes up, or what `open_databases` raises.
    """
    engine = choose_engine(settings, verbose)
    atexit.register(engine.stop)
    engine.start()
    engine.wait()


def choose_engine(settings: Settings, verbose: bool = False) -> Engine:
    """Set Prefect's environment and choose the server: the one of `up`, else PREFECT_API_URL, else a temporary one.

    Starts no process. Afterwards Prefect may be imported.
    """
    named = os.environ.get("PREFECT_API_URL")
    record = read_record(settings.root)
    running = [record.api_url] if record and record.up.alive else []
    found = next((url for url in [*running, *([named] if named else [])] if is_healthy(url)), None)
    if named and not found:
        _log.warning("no Prefect server answers at PREFECT_API_URL=%r; starting a temporary one", named)
    port = None if found else free_port()
    url = found or f"http://{HOST}:{port}/api"
    os.environ.update(engine_environment(settings, verbose), PREFECT_API_URL=url)
    (settings.root / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only, and warns
    return Engine(settings, url, port)


def engine_environment(settings: Settings, verbose: bool = False) -> dict[str, str]:
    """Prefect's settings for every process of the factory. No secrets: the database address is for the server only."""
    return {
        "PREFECT_HOME": str(settings.root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.root / "results"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",  # one request fewer per client; our server does not ask for it
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_SETTINGS_PATH": str(LOGGING),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    }


def server_environment(settings: Settings) -> dict[str, str]:
    """The environment of Prefect's server: as ours without secrets, plus its own database."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET_NAME.search(name)}
    return {
        **kept,
        **engine_environment(settings, verbose=True),
        "PREFECT_API_DATABASE_CONNECTION_URL": open_databases(settings).prefect,
        "PREFECT_API_DATABASE_TIMEOUT": "60",
        "PREFECT_API_DATABASE_CONNECTION_TIMEOUT": "30",
        "PREFECT_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


def start_server(settings: Settings, port: int, log: Path, extra: list[str]) -> subprocess.Popen[bytes]:
    """Start Prefect's server at 127.0.0.1:`port`; `log` is overwritten. Does not wait for it."""
    (settings.root / "prefect").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), *extra]
    environment = server_environment(settings)
    environment.pop("PREFECT_API_URL", None)
    return start_child(command, environment, settings.root / "prefect", log)


def start_child(command: list[str], environment: dict[str, str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process group of its own that gets SIGTERM when this process dies, however it dies (Linux). Where its log
    cannot be written, what it says is lost (OB4)."""
    with _opened(log) as output:
        return _spawn(command, environment, folder, output)


def _opened(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as error:
        _log.warning("log=%r outcome=not-written reason=%r", str(log), str(error))
        return Path(os.devnull).open("wb")


def _spawn(command: list[str], environment: dict[str, str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End the child and all of its group: SIGTERM, and SIGKILL to what is left after STOP_SECONDS."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def wait_for_server(api_url: str, child: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    """Return when the server answers. Raises Unreachable when `child` ended first or START_SECONDS passed."""
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(api_url):
        ended = child is not None and child.poll() is not None
        if ended or time.monotonic() > deadline:
            raise Unreachable(f"Prefect's server at {api_url} did not start{log_hint(log)}")
        time.sleep(0.2)


def is_healthy(api_url: str) -> bool:
    """True when a Prefect server answers at this address (with `/api`); it says so in its own words."""
    try:
        answer = httpx.get(f"{api_url}/health", timeout=5, verify=trusted())
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return answer.is_success and answer.text.strip() == "true"


@functools.cache
def trusted() -> ssl.SSLContext:
    """Whose certificates are believed, as Prefect's own client does it. Made once: it takes tens of milliseconds.

    Raises ConfigError for a file without certificates.
    """
    file = os.environ.get("PREFECT_API_SSL_CERT_FILE")
    try:
        return ssl.create_default_context(cafile=file) if file else httpx.create_ssl_context()
    except OSError as error:
        raise ConfigError(f"PREFECT_API_SSL_CERT_FILE={file!r} cannot be used: {error}; correct it") from None


def credentials() -> dict[str, str]:
    """The header that shows a Prefect server who we are; none when it asks for nothing. As Prefect's own client does it."""
    if words := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def log_hint(log: Path | None) -> str:
    """The end of a message: where to look, and the last lines that stand there."""
    if log is None:
        return ""
    return f"; look into {str(log)!r}, which ends with:\n  " + "\n  ".join(line[:300] for line in _last_lines(log))


def _last_lines(log: Path) -> list[str]:
    """None when it cannot be read: what is told of is worse than that."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            return file.read().decode(errors="replace").splitlines()[-3:]
    except OSError:
        return []


def free_port(wanted: int = 0) -> int:
    """`wanted` when nothing listens there, else a free port of the system's choice."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise Unreachable(f"no free port at {HOST}")


def record_path(home: Path) -> Path:
    return home / "run" / "prefect.json"


def read_record(home: Path) -> ServerRecord | None:
    """What `darkfactory up` of this home wrote, or None. Says nothing about whether it still runs."""
    try:
        return ServerRecord.model_validate_json(record_path(home).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(home: Path, record: ServerRecord) -> None:
    write_atomically(record_path(home), record.model_dump_json(indent=1).encode())
