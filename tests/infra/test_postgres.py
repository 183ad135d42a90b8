"""The embedded server: started once, shared, adopted, restarted after kill -9, closed to strangers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from infra.errors import AuthFailed, ConfigError, Unreachable
from infra.postgres import connected, database_urls, ensure_postgres, open_databases, stop_postgres
from infra.settings import Settings


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="darkfactory-tests-"))
    try:
        yield folder
    finally:
        stop_postgres(folder)
        shutil.rmtree(folder)


@pytest.fixture
def empty_home() -> Iterator[Path]:
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def stopped_home() -> Iterator[Path]:
    """A home with an initialised server that does not run, to be copied: faster than initialising each time."""
    with _folder() as folder:
        ensure_postgres(folder)
        stop_postgres(folder)
        yield folder


@pytest.fixture
def home(stopped_home: Path) -> Iterator[Path]:
    """A home of its own, for tests that kill or stop the server."""
    with _folder() as folder:
        subprocess.run(["cp", "-a", f"{stopped_home}/.", str(folder)], check=True)
        (folder / "postgres/port").unlink()
        yield folder


def _postmaster(home: Path) -> int:
    return int((home / "postgres/data/postmaster.pid").read_text().splitlines()[0])


@pytest.mark.integration
def test_two_racing_processes_start_one_server_which_outlives_them_and_is_adopted(empty_home: Path) -> None:
    code = "import sys, pathlib; from infra.postgres import *; u = ensure_postgres(pathlib.Path(sys.argv[1])); database_urls(u); print(u)"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(empty_home)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    urls = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert len(urls) == 1
    pid = _postmaster(empty_home)
    assert {ensure_postgres(empty_home)} == urls
    assert _postmaster(empty_home) == pid
    assert os.getsid(pid) == pid, "the server must not get the signals of the terminal that started it"


@pytest.mark.integration
def test_after_kill_9_of_the_server_it_comes_back_with_its_data_on_the_same_url(home: Path) -> None:
    url = ensure_postgres(home)
    with psycopg.connect(url) as connection:
        connection.execute("create table kept as select 1 as value")
    os.kill(_postmaster(home), signal.SIGKILL)
    assert ensure_postgres(home) == url
    with psycopg.connect(url) as connection:
        assert connection.execute("select value from kept").fetchall() == [(1,)]


@pytest.mark.integration
def test_a_stale_pid_file_that_names_a_living_foreign_program_does_not_stop_the_start(home: Path) -> None:
    url = ensure_postgres(home)
    pid_file = home / "postgres/data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    stop_postgres(home)
    with subprocess.Popen(["sleep", "60"]) as foreign:
        pid_file.write_text("\n".join([str(foreign.pid), *lines[1:]]) + "\n")
        assert ensure_postgres(home) == url
        assert foreign.poll() is None, "the foreign program must live on"
        foreign.kill()


@pytest.mark.integration
def test_a_taken_port_is_replaced_and_stopping_twice_is_fine(home: Path) -> None:
    url = ensure_postgres(home)
    stop_postgres(home)
    stop_postgres(home)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", int((home / "postgres/port").read_text())))
        thief.listen()
        replaced = ensure_postgres(home)
    assert replaced != url
    with connected(replaced) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.integration
def test_a_half_made_data_folder_is_made_anew(empty_home: Path) -> None:
    half = empty_home / "postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    with connected(ensure_postgres(empty_home)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert not half.exists()


@pytest.mark.integration
def test_a_data_folder_of_another_version_is_refused_fast_with_the_reason(empty_home: Path) -> None:
    data = empty_home / "postgres/data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"does not start.*postgres\.log"):
        ensure_postgres(empty_home)
    assert time.monotonic() - started < 10


def test_the_server_listens_on_loopback_with_a_password_and_its_files_are_closed(postgres_home: Path) -> None:
    url = ensure_postgres(postgres_home)
    with connected(url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("show unix_socket_directories").fetchone() == ("",)
        assert connection.execute("show max_connections").fetchone() == ("200",)
    assert (postgres_home / "postgres/password").stat().st_mode & 0o777 == 0o600
    assert (postgres_home / "postgres").stat().st_mode & 0o777 == 0o700
    password = (postgres_home / "postgres/password").read_text()
    with pytest.raises(AuthFailed) as refused, connected(url.replace(password, "guessed-password")):
        pass
    assert "guessed-password" not in str(refused.value)


@pytest.mark.integration
def test_the_server_gets_no_secrets_from_our_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WS7: tokens are absent from every child's environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "must-not-be-handed-on")
    ensure_postgres(home)
    environment = Path(f"/proc/{_postmaster(home)}/environ")
    if not environment.exists():
        pytest.skip("no /proc here")
    assert b"must-not-be-handed-on" not in environment.read_bytes()


def test_both_databases_are_there_and_making_them_again_changes_nothing(postgres_home: Path) -> None:
    url = ensure_postgres(postgres_home)
    urls = database_urls(url)
    assert urls == database_urls(url)
    assert urls.ledger.startswith("postgresql+psycopg://")
    assert urls.ledger.endswith("/darkfactory")
    assert urls.prefect.startswith("postgresql+asyncpg://")
    assert urls.prefect.endswith("/prefect")
    assert urls.ledger.split(":")[2].split("@")[0] not in repr(urls)


def test_a_named_database_serves_ledger_and_prefect_and_sslmode_is_spelled_for_each(database_url: str) -> None:
    urls = open_databases(Settings(database_url=f"{database_url}?sslmode=disable"))
    assert urls.ledger == database_url.replace("postgresql:", "postgresql+psycopg:") + "?sslmode=disable"
    assert urls.prefect == database_url.replace("postgresql:", "postgresql+asyncpg:") + "?ssl=disable"


async def test_prefects_driver_connects_with_the_url_it_is_given(database_url: str) -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(open_databases(Settings(database_url=f"{database_url}?sslmode=disable")).prefect)
    async with engine.connect() as connection:
        assert await connection.scalar(text("select 1")) == 1
    await engine.dispose()


def test_an_unreachable_database_is_named_by_host_and_port_without_the_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        settings = Settings(database_url=f"postgresql://someone:very-secret@127.0.0.1:{port}/factory")
        with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}") as raised:
            open_databases(settings)
    assert "very-secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["mysql://u:very-secret@h/d", "very-secret", "postgresql://u:very-secret@h"])
def test_a_url_that_is_not_a_postgresql_database_is_a_config_error_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://") as raised:
        open_databases(Settings(database_url=url))
    assert "very-secret" not in str(raised.value)


def test_a_missing_database_is_a_config_error_that_names_it(postgres_url: str) -> None:
    with pytest.raises(ConfigError, match="'nowhere'"):
        open_databases(Settings(database_url=postgres_url.removesuffix("/postgres") + "/nowhere"))
