"""The one database: schema and tables' base, transactions whose errors say what to do, and migrations.

`ledger`, `budgets`, `claims`, `pauses`, `fleet` and `deliveries` keep their tables here; each owns its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Engine,
    MetaData,
    Text,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session

from infra.errors import ConfigError
from infra.llm import Frozen
from infra.migrations import HEAD
from infra.postgres import database_error, open_databases
from infra.settings import Settings

SCHEMA = "darkfactory_ledger"
"""Not `darkfactory`: PostgreSQL looks first into the schema named like the user, so a user `darkfactory` would make
Prefect keep its tables, and look for its own `alembic_version`, among ours."""
WATCH_SECONDS = 2
_MIGRATION_LOCK = 7_203_772
_CONNECTING = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""A host that vanished is noticed after a minute; the system's own keepalive takes two hours."""
SILENCE_SECONDS = 60
"""Longest that a transaction may stand still between two statements; what a claim fences off has to end within it, too."""


class Table(DeclarativeBase):
    """All tables live in our own schema, so one database can hold Prefect's tables too."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        },
    )
    type_annotation_map = {
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[str]: JSONB(),
    }


class Row(Frozen):
    """A value read from the ledger. Times are aware."""

    model_config = ConfigDict(from_attributes=True, extra="ignore")


Clock = Callable[[], datetime]
"""Stands in for the database's clock where a test moves the time."""


def now(session: Session, clock: Clock | None = None) -> datetime:
    """The database's time (of this transaction's start), which machines with wrong clocks agree on."""
    time: ColumnElement[datetime] = func.now() if clock is None else literal(clock())
    return session.scalars(select(time)).one()


def open_database(settings: Settings) -> Database:
    """The database of the settings, migrated to the newest schema. Close it, or use it in a `with`.

    Raises Unreachable, AuthFailed, and ConfigError (also when the schema was written by a newer version).
    """
    database = Database(open_databases(settings).ledger)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


class Database:
    """Connections to one PostgreSQL database. All methods block; they may be called from several threads.

    Raises Unreachable when the server does not answer; a later call connects anew.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=2,
            max_overflow=8,
            hide_parameters=True,
            connect_args=_CONNECTING,
        )
        event.listen(self._engine, "connect", _bound_silence)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to `HEAD`: one transaction, one process at a time, nothing to do when it is there."""
        with self.transaction() as session:
            if _schema_revision(session) != HEAD:
                session.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                _upgrade(session)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception."""
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        except DBAPIError as error:
            if isinstance(error.orig, Exception) and _is_ours_to_explain(error):
                raise database_error(self._url, error.orig) from error
            raise


def _bound_silence(connection: Any, _: object) -> None:
    """A process that is suspended in mid-transaction (a closed laptop) loses its connection, and with it the locks that all
    dispatchers of all machines wait for."""
    with connection.cursor() as cursor:
        cursor.execute(f"set idle_in_transaction_session_timeout = '{SILENCE_SECONDS}s'")
    connection.commit()


class ReadOnly(Database):
    """The database for those who only watch: no transaction of theirs writes, or keeps the server busy for long."""

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """As `Database.transaction`. A statement that takes longer than `WATCH_SECONDS` raises Unreachable."""
        with super().transaction() as session:
            session.execute(text("set transaction read only"))
            session.execute(text(f"set local statement_timeout = '{WATCH_SECONDS}s'"))
            yield session


@contextmanager
def only_one(database: Database, lock: int) -> Iterator[bool]:
    """Whether no other process of any machine holds the lock of this number, which is ours while inside and ends with us."""
    with database.transaction() as session:
        session.execute(text("set local idle_in_transaction_session_timeout = 0"))
        yield bool(session.scalar(select(func.pg_try_advisory_xact_lock(lock))))


def _is_ours_to_explain(error: DBAPIError) -> bool:
    """The connection, the rights, the disk, or another transaction in the way; anything else (a broken constraint, bad SQL)
    is a bug and stays visible."""
    state = getattr(error.orig, "sqlstate", None)
    passing = ("08", "28", "40", "53", "57")
    return error.connection_invalidated or state is None or state[:2] in passing or state in ("25P03", "42501", "55P03")


def _schema_revision(session: Session) -> str | None:
    """The revision in the database, or None for an empty one."""
    table = f"{SCHEMA}.alembic_version"
    if session.scalar(text("select to_regclass(:table)"), {"table": table}) is None:
        return None
    revision: str | None = session.scalar(text(f"select version_num from {table}"))  # noqa: S608 - a constant
    return revision


def _upgrade(session: Session) -> None:
    from alembic import command  # deferred: half the cost of opening a ledger, and needed once per version
    from alembic.config import Config
    from alembic.util import CommandError

    session.execute(text(f"create schema if not exists {SCHEMA}"))
    config = Config(attributes={"connection": session.connection()})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(f"the ledger was written by a newer darkfactory ({error}); install that version") from error
