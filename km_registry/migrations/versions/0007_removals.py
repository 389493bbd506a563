"""Removals of KMs, versions and users; a removed user's row stays as long as receipts refer to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_ID = sa.String(length=32)
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "removals",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("requested_by", _ID, nullable=False),
        sa.Column("requested_at", _MOMENT, nullable=False),
        sa.Column("completed_at", _MOMENT, nullable=True),
        sa.Column("document_id", _ID, nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("km_ids", sa.JSON(), nullable=False),
        sa.Column("purged", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_removals")),
        sa.UniqueConstraint("id", name=op.f("uq_removals_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_removals_completed_at"), "removals", ["completed_at"], unique=False)
    op.add_column("users", sa.Column("deleted_at", _MOMENT, nullable=True))


def downgrade() -> None:
    """Go back from this revision."""
    op.drop_column("users", "deleted_at")
    op.drop_index(op.f("ix_removals_completed_at"), table_name="removals")
    op.drop_table("removals")
