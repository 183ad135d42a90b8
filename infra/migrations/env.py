"""Alembic's entry point: runs on the connection, and in the transaction, that `infra.database` hands over."""

from alembic import context

from infra import (  # noqa: F401  the tables of all of them
    budgets,
    claims,
    deliveries,
    feedback,
    fleet,
    housekeeping,
    ledger,
    lessons,
    pauses,
    playbooks,
    repairs,
    runner_jobs,
    stewardships,
)
from infra.database import SCHEMA, Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
