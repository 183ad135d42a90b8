"""Work units on GitHub Actions, and the allowance they used."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "runner_jobs",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "project", "board", "ticket", "state")),
        sa.Column("run", sa.BigInteger(), nullable=True),
        sa.Column("minutes", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("reserved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('open', 'done', 'failed')", name=op.f("ck_runner_jobs_state_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runner_jobs")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_runner_jobs_project_reserved_at"), "runner_jobs", ["project", "reserved_at"], schema=SCHEMA
    )


def downgrade() -> None:
    op.drop_table("runner_jobs", schema=SCHEMA)
