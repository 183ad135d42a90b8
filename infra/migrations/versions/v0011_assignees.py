"""Whom a ticket belonged to when its run began, so that a run whose ticket is given to somebody else is stopped."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.add_column("claims", sa.Column("assignee", sa.Text(), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    op.drop_column("claims", "assignee", schema=SCHEMA)
