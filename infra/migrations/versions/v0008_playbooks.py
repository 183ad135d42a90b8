"""Operations, playbooks and their runs."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def _now(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("steps", postgresql.JSONB(), nullable=False),
        sa.Column("verify", sa.Text(), nullable=True),
        sa.Column("succeeded", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        _now("at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
        sa.UniqueConstraint("repository", "source", name=op.f("uq_operations_repository_source")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_operations_repository_shape"), "operations", ["repository", "shape"], schema=SCHEMA)
    op.create_table(
        "playbooks",
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("provenance", postgresql.JSONB(), server_default="[]", nullable=False),
        sa.Column("url", sa.Text(), server_default="", nullable=False),
        _now("decided_at"),
        sa.CheckConstraint("state in ('proposed', 'approved', 'disabled')", name=op.f("ck_playbooks_state_known")),
        sa.PrimaryKeyConstraint("repository", "name", name=op.f("pk_playbooks")),
        schema=SCHEMA,
    )
    op.create_table(
        "playbook_runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("base_sha", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(), nullable=False),
        sa.Column("board", sa.Text(), nullable=True),
        sa.Column("ticket", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("failed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("approvals", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("flow_run", sa.Text(), nullable=True),
        _now("started_at"),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state in ('running', 'waiting', 'undoing', 'succeeded', 'undone', 'stuck')",
            name=op.f("ck_playbook_runs_state_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_playbook_runs")),
        schema=SCHEMA,
    )
    op.create_index(
        "uq_playbook_runs_ticket", "playbook_runs", ["board", "ticket"], unique=True, schema=SCHEMA,
        postgresql_where=sa.text("state <> 'undone'"),
    )  # fmt: skip
    op.create_index(
        op.f("ix_playbook_runs_repository_name_started_at"), "playbook_runs", ["repository", "name", "started_at"],
        schema=SCHEMA,
    )  # fmt: skip
    op.create_table(
        "playbook_steps",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("output", sa.Text(), server_default="", nullable=False),
        _now("updated_at"),
        sa.CheckConstraint(
            "state in ('started', 'finished', 'failed', 'skipped', 'undoing', 'undone', 'kept', 'undo-failed')",
            name=op.f("ck_playbook_steps_state_known"),
        ),
        sa.ForeignKeyConstraint(["run"], [f"{SCHEMA}.playbook_runs.id"], name=op.f("fk_playbook_steps_run")),
        sa.PrimaryKeyConstraint("run", "step", name=op.f("pk_playbook_steps")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    for table in ("playbook_steps", "playbook_runs", "playbooks", "operations"):
        op.drop_table(table, schema=SCHEMA)
