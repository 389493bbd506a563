"""Alembic's entry. The connection, already in a transaction, is given by `km_registry.store.database`."""

from __future__ import annotations

from alembic import context

from km_registry.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_type=True,
    # Both databases roll DDL back; Alembic does not know it of SQLite, whose driver we tell when to BEGIN.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
