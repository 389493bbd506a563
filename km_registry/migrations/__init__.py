"""Alembic migrations; `km_registry.store.database` runs them, nobody calls alembic by hand."""
