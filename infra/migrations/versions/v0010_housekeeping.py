"""What housekeeping found, and the tickets it made."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("chore", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("board", sa.Text(), nullable=True),
        sa.Column("ticket", sa.Text(), nullable=True),
        sa.Column("draft", postgresql.JSONB(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("intended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state in ('seen', 'intended', 'created', 'duplicate')", name=op.f("ck_findings_state_known")
        ),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_findings")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_findings_chore_intended_at"), "findings", ["chore", "intended_at"], unique=False, schema=SCHEMA
    )
    op.create_table(
        "chore_runs",
        sa.Column("chore", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("chore", "repository", name=op.f("pk_chore_runs")),
        schema=SCHEMA,
    )
    op.create_table(
        "chore_marks",
        sa.Column("chore", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("chore", "place", "subject", name=op.f("pk_chore_marks")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_chore_marks_chore_at"), "chore_marks", ["chore", "at"], unique=False, schema=SCHEMA)


def downgrade() -> None:
    op.drop_table("chore_marks", schema=SCHEMA)
    op.drop_table("chore_runs", schema=SCHEMA)
    op.drop_table("findings", schema=SCHEMA)
