"""The factory's repairs of itself, and its releases."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def _at(name: str, nullable: bool = False) -> sa.Column[datetime]:
    default = None if nullable else sa.text("now()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "repairs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), server_default="found", nullable=False),
        _at("stage_at"),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("frames", postgresql.JSONB(), nullable=False),
        sa.Column("baseline", postgresql.JSONB(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=True),
        sa.Column("branch", sa.Text(), nullable=True),
        sa.Column("paths", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("effort", sa.BigInteger(), nullable=True),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("base_sha", sa.Text(), nullable=True),
        sa.Column("head_sha", sa.Text(), nullable=True),
        sa.Column("new_sha", sa.Text(), nullable=True),
        sa.Column("old_release", sa.Text(), nullable=True),
        sa.Column("watched", postgresql.JSONB(), nullable=True),
        _at("started_at"),
        _at("switched_at", nullable=True),
        _at("ended_at", nullable=True),
        _at("cooldown_until", nullable=True),
        sa.CheckConstraint(
            "outcome in ('kept', 'refused', 'failed', 'rolled-back')", name=op.f("ck_repairs_outcome_known")
        ),
        sa.CheckConstraint("(stage = 'ended') = (ended_at is not null)", name=op.f("ck_repairs_ended_at_the_end")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repairs")),
        schema=SCHEMA,
    )
    op.create_index(
        "uq_repairs_open_signature", "repairs", ["signature"], unique=True, schema=SCHEMA,
        postgresql_where=sa.text("stage <> 'ended'"),
    )  # fmt: skip
    op.create_table(
        "repair_journal",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("repair", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("old_sha", sa.Text(), nullable=True),
        sa.Column("new_sha", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        _at("at"),
        sa.ForeignKeyConstraint(["repair"], [f"{SCHEMA}.repairs.id"], name=op.f("fk_repair_journal_repair")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repair_journal")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_repair_journal_repair"), "repair_journal", ["repair"], unique=False, schema=SCHEMA)
    op.create_table(
        "release_state",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("wanted", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("halted", sa.Text(), nullable=True),
        _at("resumed_at", nullable=True),
        _at("updated_at"),
        sa.CheckConstraint("id = 1", name=op.f("ck_release_state_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_state")),
        schema=SCHEMA,
    )
    op.create_table(
        "node_releases",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        _at("at"),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_node_releases")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    for table in ("node_releases", "release_state", "repair_journal", "repairs"):
        op.drop_table(table, schema=SCHEMA)
