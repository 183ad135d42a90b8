"""Alembic's entry point: runs on the connection, and in the transaction, that `infra.database` hands over."""

from alembic import context

from infra import budgets, claims, deliveries, fleet, ledger, pauses, runner_jobs, stewardships  # noqa: F401  the tables of all of them
from infra.database import SCHEMA, Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
