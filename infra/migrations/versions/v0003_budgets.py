"""Reservations of money, and who answered a call."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

SCHEMA = "darkfactory_ledger"


def upgrade() -> None:
    op.create_table(
        "reservations",
        sa.Column("call_key", sa.Text(), nullable=False),
        sa.Column("board", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("agent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("usd", sa.Numeric(18, 9), nullable=False),
        sa.Column("settled_usd", sa.Numeric(18, 9), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("call_key", name=op.f("pk_reservations")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_reservations_board_ticket"), "reservations", ["board", "ticket"], schema=SCHEMA)
    op.create_index(op.f("ix_reservations_at"), "reservations", ["at"], schema=SCHEMA)
    op.add_column("sessions", sa.Column("provider", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("sessions", sa.Column("effort", sa.BigInteger(), nullable=True), schema=SCHEMA)
    op.create_index(op.f("ix_sessions_at"), "sessions", ["at"], schema=SCHEMA)


def downgrade() -> None:
    op.drop_index(op.f("ix_sessions_at"), "sessions", schema=SCHEMA)
    op.drop_column("sessions", "effort", schema=SCHEMA)
    op.drop_column("sessions", "provider", schema=SCHEMA)
    op.drop_table("reservations", schema=SCHEMA)
