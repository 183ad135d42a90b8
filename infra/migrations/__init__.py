"""The ledger's schema, step by step (Alembic). `infra.ledger.open_ledger` brings a database to the newest step.

A new step: change the tables in `infra/ledger.py`, add a file in `versions/` and raise `HEAD`; a test compares all three.
"""

HEAD = "0001"
"""The newest revision. Known without loading Alembic, so that opening an up-to-date ledger stays cheap."""
