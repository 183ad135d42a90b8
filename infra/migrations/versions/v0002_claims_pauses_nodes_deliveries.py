"""Claims, pauses, nodes and webhook deliveries."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def _text(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=null)


def _time(name: str, *, null: bool = False, now: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null, server_default=sa.text("now()") if now else None)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def upgrade() -> None:
    op.create_table(
        "claims",
        _text("board"),
        _text("ticket"),
        _text("state"),
        sa.Column("token", sa.BigInteger(), nullable=False),
        _text("holder"),
        _text("machine"),
        _text("node"),
        _text("repository"),
        _text("ticket_state"),
        _text("content"),
        _time("claimed_at"),
        _time("lease_until"),
        sa.Column("lease_seconds", sa.Double(), nullable=False),
        _text("flow_run", null=True),
        _time("due_at", null=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        _text("stop", null=True),
        _text("question", null=True),
        sa.Column("moved", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _time("started_at", null=True),
        _time("progress_at", null=True),
        _time("updated_at", now=True),
        _count("failures"),
        _count("continuations"),
        _count("revisions"),
        _count("ci_fixes"),
        _count("conflict_fixes"),
        _count("infra_faults"),
        sa.CheckConstraint(
            "state in ('claimed', 'running', 'retry-queued', 'parked', 'released')", name=op.f("ck_claims_state_known")
        ),
        sa.PrimaryKeyConstraint("board", "ticket", name=op.f("pk_claims")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_claims_state_lease_until"), "claims", ["state", "lease_until"], schema=SCHEMA)
    op.create_table(
        "pauses",
        _text("scope"),
        _text("reason"),
        _time("since", now=True),
        _time("until", null=True),
        sa.Column("times", sa.BigInteger(), server_default="1", nullable=False),
        _text("probe", null=True),
        _time("lifted_at", null=True),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_pauses")),
        schema=SCHEMA,
    )
    op.create_table(
        "nodes",
        _text("name"),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.Column("labels", postgresql.JSONB(), nullable=False),
        _text("state"),
        _text("machine"),
        _text("provider"),
        _time("lease_until"),
        _time("joined_at", now=True),
        sa.CheckConstraint("state in ('active', 'draining', 'left')", name=op.f("ck_nodes_state_known")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
        schema=SCHEMA,
    )
    op.create_table(
        "deliveries",
        _text("source"),
        _text("id"),
        _text("kind"),
        _text("board", null=True),
        _text("ticket", null=True),
        _time("received_at", now=True),
        _time("emitted_at", null=True),
        sa.PrimaryKeyConstraint("source", "id", name=op.f("pk_deliveries")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    for table in ("deliveries", "nodes", "pauses", "claims"):
        op.drop_table(table, schema=SCHEMA)
