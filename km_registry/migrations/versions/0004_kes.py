"""KEs are registered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "kes",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("base_model", sa.String(length=300), nullable=False),
        sa.Column("base_fingerprint", sa.String(length=128), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("prompt_format", sa.String(length=64), nullable=False),
        sa.Column("trained", sa.String(length=16), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("default_for", sa.String(length=128), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kes")),
        sa.UniqueConstraint("default_for", name=op.f("uq_kes_default_for")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_kes_name")),
    )
    op.create_index(op.f("ix_kes_digest"), "kes", ["digest"], unique=False)


def downgrade() -> None:
    """Go back from this revision; which KEs were registered is forgotten."""
    op.drop_index(op.f("ix_kes_digest"), table_name="kes")
    op.drop_table("kes")
