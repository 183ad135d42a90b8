"""Fixtures every test may use: one real embedded PostgreSQL and one real Prefect server per test process, started when
first asked for, and a fresh migrated database per test."""

from __future__ import annotations

import gc
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deployments.engine import HOST, end_group, free_port, start_server, wait_for_server
from infra import redaction
from infra.database import Database
from infra.postgres import ensure_postgres, stop_postgres
from infra.settings import Settings

_TEMPLATE = "ledger_template"


@pytest.fixture(scope="module", autouse=True)
def _leaks_show_where_they_were_made() -> Iterator[None]:
    """A socket or file nobody closed warns when it is collected, which may be in another file's test, or never."""
    yield
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _secrets_are_forgotten() -> Iterator[None]:
    """What settings of one file's tests call a secret is an ordinary word in the next one's."""
    before = redaction._remembered
    yield
    redaction._remembered = before


@pytest.fixture(scope="session", autouse=True)
def _no_memory() -> Iterator[None]:
    """Tests of other things start no process that holds an index; those of memory turn it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKFACTORY_MEMORY", '{"enabled": false}')
        yield


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """Home folder of a running server that is stopped at the end. Not below pytest's own folder: as root the server's
    account has to pass through, and pytest closes its folder to others at each start."""
    home = Path(tempfile.mkdtemp(prefix="darkfactory-tests-"))
    try:
        _hurry(ensure_postgres(home))
        yield home
    finally:
        stop_postgres(home)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres_url(postgres_home: Path) -> str:
    """URL of the server's database `postgres`, with a migrated template database beside it."""
    url = ensure_postgres(postgres_home)
    _execute(url, "create database {}", _TEMPLATE)
    with Database(_named(url, _TEMPLATE).replace("postgresql://", "postgresql+psycopg://")) as database:
        database.migrate()
    return url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """`postgresql://…` of a new database that holds an empty, migrated ledger; for `Settings(database_url=…)`."""
    name = f"test_{secrets.token_hex(6)}"
    _execute(postgres_url, "create database {} template ledger_template", name)
    yield _named(postgres_url, name)
    _execute(postgres_url, "drop database {} with (force)", name)


@pytest.fixture(scope="session")
def prefect_url(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[str]:
    """`http://…/api` of a running Prefect server with a database of its own, for all runs of this test process."""
    _execute(postgres_url, "create database {}", "prefect_tests")
    home = tmp_path_factory.mktemp("prefect")
    settings = Settings(home=home, database_url=_named(postgres_url, "prefect_tests"))
    port, log = free_port(), home / "server.log"
    left_open = rf"ignore:unclosed <socket.*raddr=\('{HOST}', {port}\):ResourceWarning"  # by Prefect's own clients
    pytestconfig.addinivalue_line("filterwarnings", left_open)
    server = start_server(settings, port, log, ["--no-ui", "--no-scheduler", "--no-late-runs"])
    try:
        url = f"http://{HOST}:{port}/api"
        wait_for_server(url, server, log)
        yield url
    finally:
        end_group(server)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """`postgresql://…` of a new database without any table."""
    name = f"test_{secrets.token_hex(6)}"
    _execute(postgres_url, "create database {}", name)
    yield _named(postgres_url, name)
    _execute(postgres_url, "drop database {} with (force)", name)


def _hurry(url: str) -> None:
    """Tests do not outlive the machine, so they need not wait for the disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sql.SQL("alter system set {} = off").format(sql.Identifier(setting)))
        connection.execute("select pg_reload_conf()")


def _execute(url: str, statement: str, name: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))  # type: ignore[arg-type]


def _named(url: str, database: str) -> str:
    return url.removesuffix("/postgres") + f"/{database}"
