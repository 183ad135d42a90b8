"""What a run was like, for success rates, and what each day's calibration made of it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "run_traits",
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("intent", sa.Text(), nullable=False),
        sa.Column("effort", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("lifted_by", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["attempt"], [f"{SCHEMA}.attempts.id"], name=op.f("fk_run_traits_attempt_attempts")),
        sa.PrimaryKeyConstraint("attempt", name=op.f("pk_run_traits")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_run_traits_at"), "run_traits", ["at"], unique=False, schema=SCHEMA)
    op.create_table(
        "calibrations",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.Column("told", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_calibrations")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("calibrations", schema=SCHEMA)
    op.drop_table("run_traits", schema=SCHEMA)
