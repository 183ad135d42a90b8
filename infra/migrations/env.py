"""Alembic's entry point: runs on the connection, and in the transaction, that `infra.ledger` hands over."""

from alembic import context

from infra.ledger import SCHEMA, Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
