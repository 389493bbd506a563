"""Groups, grants and the audit log; keys get ids, names and an end; users' names become unique."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from km_registry.ids import new_id

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go to this revision. Who uploaded a document becomes its owner by a grant."""
    _name_users_apart()
    op.create_index("uq_users_name", "users", ["name"], unique=True)
    _give_keys_ids()
    _create_groups()
    _create_grants()
    _create_audit()
    op.add_column("documents", sa.Column("deleted_by", sa.String(length=32), nullable=True))
    op.add_column("receipts", sa.Column("requested_by", sa.String(length=32), nullable=True))


def _name_users_apart() -> None:
    """The first user of a name keeps it; a later one's gets its id appended."""
    users = sa.table("users", sa.column("id"), sa.column("name"), sa.column("created_at"))
    connection = op.get_bind()
    taken: set[str] = set()
    for user_id, name in connection.execute(
        sa.select(users.c.id, users.c.name).order_by(users.c.created_at, users.c.id)
    ).all():
        if name in taken:
            apart = f"{name[:260]} {user_id}"
            connection.execute(sa.update(users).where(users.c.id == user_id).values(name=apart))
        taken.add(name)


def _give_keys_ids() -> None:
    old = sa.table("api_keys", sa.column("sha256"), sa.column("user_id"), sa.column("created_at", _MOMENT))
    connection = op.get_bind()
    kept = connection.execute(sa.select(old.c.sha256, old.c.user_id, old.c.created_at)).all()
    op.drop_index("ix_api_keys_user_id", table_name="api_keys")
    op.drop_table("api_keys")
    table = op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=True),
        sa.Column("revoked_at", _MOMENT, nullable=True),
        sa.Column("last_used_at", _MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"], unique=False)
    rows = [
        {"id": new_id("key"), "sha256": sha256, "user_id": user_id, "name": "first", "created_at": at}
        for sha256, user_id, at in kept
    ]
    if rows:
        op.bulk_insert(table, rows)


def _create_groups() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
        sa.UniqueConstraint("name", name=op.f("uq_groups_name")),
    )
    op.create_table(
        "memberships",
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_memberships_group_id_groups"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_memberships_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"], unique=False)


def _create_grants() -> None:
    op.create_table(
        "grants",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("document_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=True),
        sa.Column("group_id", sa.String(length=32), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.CheckConstraint("(user_id IS NULL) <> (group_id IS NULL)", name="ck_grants_one_principal"),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_grants_document_id_documents"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_grants_group_id_groups"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_grants_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("document_id", "group_id", name="uq_grants_document_group"),
        sa.UniqueConstraint("document_id", "user_id", name="uq_grants_document_user"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_grants_group_id"), "grants", ["group_id"], unique=False)
    op.create_index(op.f("ix_grants_user_id"), "grants", ["user_id"], unique=False)
    op.execute(
        "INSERT INTO grants (document_id, user_id, role, created_at) "
        "SELECT id, owner_id, 'owner', created_at FROM documents WHERE deleted_at IS NULL"
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("actor_id", sa.String(length=32), nullable=True),
        sa.Column("key_id", sa.String(length=32), nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("target_id", sa.String(length=32), nullable=True),
        sa.Column("other_id", sa.String(length=32), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    for column in ("actor_id", "at", "target_id"):
        op.create_index(op.f(f"ix_audit_{column}"), "audit", [column], unique=False)


def downgrade() -> None:
    """Go back to the one before. Keys that had ended would work again, so they are forgotten."""
    op.drop_column("receipts", "requested_by")
    op.drop_column("documents", "deleted_by")
    for table in ("audit", "grants", "memberships", "groups"):
        op.drop_table(table)
    _forget_key_ids()
    op.drop_index("uq_users_name", table_name="users")


def _forget_key_ids() -> None:
    keys = sa.table(
        "api_keys",
        sa.column("sha256"),
        sa.column("user_id"),
        sa.column("created_at", _MOMENT),
        sa.column("expires_at"),
        sa.column("revoked_at"),
    )
    connection = op.get_bind()
    endless = sa.select(keys.c.sha256, keys.c.user_id, keys.c.created_at).where(
        keys.c.expires_at.is_(None), keys.c.revoked_at.is_(None)
    )
    kept = connection.execute(endless).all()
    op.drop_index(op.f("ix_api_keys_user_id"), table_name="api_keys")
    op.drop_table("api_keys")
    restored = op.create_table(
        "api_keys",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"], unique=False)
    if kept:
        op.bulk_insert(
            restored, [dict(zip(("sha256", "user_id", "created_at"), row, strict=True)) for row in kept]
        )
