"""Gateways that share the database, what they acknowledged, and which installation it is of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ID = sa.String(length=32)
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "installation",
        sa.Column("id", _ID, nullable=False),
        sa.Column("home", _ID, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "gateways",
        sa.Column("id", _ID, nullable=False),
        sa.Column("home", _ID, nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("engine", sa.String(length=16), nullable=False),
        sa.Column("base_fingerprint", sa.String(length=128), nullable=False),
        sa.Column("joined_at", _MOMENT, nullable=False),
        sa.Column("seen_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )
    op.create_table(
        "evictions",
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("gateway_id", _ID, nullable=False),
        sa.Column("evicted", sa.JSON(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("subject", "gateway_id", name=op.f("pk_evictions")),
    )


def downgrade() -> None:
    """Go back from this revision."""
    op.drop_table("evictions")
    op.drop_table("gateways")
    op.drop_table("installation")
