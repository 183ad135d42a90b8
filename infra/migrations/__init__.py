"""The ledger's schema, step by step (Alembic). `infra.database.open_database` brings a database to the newest step.

A new step: change the tables, add a file in `versions/` and raise `HEAD`; a test compares all three.
"""

HEAD = "0011"
"""The newest revision. Known without loading Alembic, so that opening an up-to-date ledger stays cheap."""
