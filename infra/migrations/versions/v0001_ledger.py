"""The first tables: tickets, attempts, sessions, events, verdicts, pull requests."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "tickets",
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("board", "key", name=op.f("pk_tickets")),
        schema=SCHEMA,
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("base_sha", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("failure_class", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome in ('accepted', 'rejected', 'infra_failed', 'work_failed', 'cancelled')",
            name=op.f("ck_attempts_outcome_known"),
        ),
        sa.CheckConstraint("(outcome is null) = (ended_at is null)", name=op.f("ck_attempts_ended_with_outcome")),
        sa.ForeignKeyConstraint(
            ["board", "ticket"],
            [f"{SCHEMA}.tickets.board", f"{SCHEMA}.tickets.key"],
            name=op.f("fk_attempts_board_ticket"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("board", "ticket", "number", name=op.f("uq_attempts_board_ticket_number")),
        schema=SCHEMA,
    )
    op.create_table(
        "pull_requests",
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("head_sha", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["board", "ticket"],
            [f"{SCHEMA}.tickets.board", f"{SCHEMA}.tickets.key"],
            name=op.f("fk_pull_requests_board_ticket"),
        ),
        sa.PrimaryKeyConstraint("board", "ticket", "branch", name=op.f("pk_pull_requests")),
        schema=SCHEMA,
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=True),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["attempt"], [f"{SCHEMA}.attempts.id"], name=op.f("fk_events_attempt")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_events_board_ticket_id"), "events", ["board", "ticket", "id"], unique=False, schema=SCHEMA)
    op.create_table(
        "sessions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("call_key", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("candidate", sa.BigInteger(), nullable=True),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=18, scale=9, asdecimal=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["attempt"], [f"{SCHEMA}.attempts.id"], name=op.f("fk_sessions_attempt")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("call_key", name=op.f("uq_sessions_call_key")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_sessions_attempt"), "sessions", ["attempt"], unique=False, schema=SCHEMA)
    op.create_table(
        "verdicts",
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("candidate_sha", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reasons", postgresql.JSONB(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["attempt"], [f"{SCHEMA}.attempts.id"], name=op.f("fk_verdicts_attempt")),
        sa.PrimaryKeyConstraint("attempt", "round", name=op.f("pk_verdicts")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("verdicts", schema=SCHEMA)
    op.drop_index(op.f("ix_sessions_attempt"), table_name="sessions", schema=SCHEMA)
    op.drop_table("sessions", schema=SCHEMA)
    op.drop_index(op.f("ix_events_board_ticket_id"), table_name="events", schema=SCHEMA)
    op.drop_table("events", schema=SCHEMA)
    op.drop_table("pull_requests", schema=SCHEMA)
    op.drop_table("attempts", schema=SCHEMA)
    op.drop_table("tickets", schema=SCHEMA)
