"""Pull requests the factory looks after."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "stewardships",
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="watched", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("ci_fixes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("review_rounds", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("conflict_fixes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("extra", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("handled", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("wanted", postgresql.JSONB(), nullable=True),
        sa.Column("journal", postgresql.JSONB(), nullable=True),
        sa.Column("settled", sa.Text(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state in ('watched', 'parked', 'ended')", name=op.f("ck_stewardships_state_known")),
        sa.PrimaryKeyConstraint("repository", "branch", name=op.f("pk_stewardships")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_stewardships_board_ticket"), "stewardships", ["board", "ticket"], unique=False, schema=SCHEMA
    )


def downgrade() -> None:
    op.drop_table("stewardships", schema=SCHEMA)
