"""A PostgreSQL of the system's packages, started by a test beside the embedded one, with connections that can be cut."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg


def system_binaries() -> Path | None:
    """Folder of the newest `postgres` and `initdb` of the system, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) if Path("/usr/lib/postgresql").is_dir() else []
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class SystemPostgres:
    """One server on 127.0.0.1 in a folder of its own; `restart` ends it at once, like a power cut, and starts it again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._data, self._log = binaries, folder / "data", folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync")
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", ""]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "-c", "listen_addresses=127.0.0.1"], stdout=log, stderr=log, **self._account()
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2) as connection:
                if connection.execute("select pg_is_in_recovery()").fetchone() == (False,):
                    return
            time.sleep(0.1)
        raise RuntimeError(self._log.read_text()[-2000:])

    def stop(self) -> None:
        if self._server is not None:
            self._run("pg_ctl", "stop", "-D", str(self._data), "-m", "immediate")
            self._server.wait(30)
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def cut_connections(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._binaries / program), *arguments], check=True, capture_output=True, **self._account())

    @staticmethod
    def _account() -> dict[str, int]:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        entry = pwd.getpwnam("postgres")
        return {"user": entry.pw_uid, "group": entry.pw_gid}


@contextmanager
def system_postgres(binaries: Path) -> Iterator[SystemPostgres]:
    folder = Path(tempfile.mkdtemp(prefix="darkfactory-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    server = SystemPostgres(binaries, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
