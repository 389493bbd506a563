"""The tables and the migrations that make them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_mock_engine, text
from sqlalchemy.exc import IntegrityError, StatementError

from km_registry.store.database import MIGRATIONS, Database
from km_registry.tables import Base, UserRow


@pytest.fixture
def migrated(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'migrated.sqlite3'}")
    database.migrate()
    yield database
    database.close()


def schema(database: Database) -> set[tuple[str, ...]]:
    """Every statement as its sorted lines, since the order of constraints means nothing."""
    query = text(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
        "AND name != 'alembic_version'"
    )
    with database.reading() as session:
        return {
            tuple(sorted(line.strip(" \t,") for line in sql.replace('"', "").splitlines()))
            for (sql,) in session.execute(query)
        }


def test_migrations_and_metadata_agree(migrated: Database, tmp_path: Path) -> None:
    with migrated.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    created = Database(f"sqlite:///{tmp_path / 'created.sqlite3'}")
    Base.metadata.create_all(created.engine)
    # Alembic does not compare the conditions of partial indexes; the statements tell.
    assert schema(migrated) == schema(created)
    created.close()


def test_migrating_twice_changes_nothing(migrated: Database) -> None:
    before = schema(migrated)
    migrated.migrate()
    assert schema(migrated) == before


def test_there_is_one_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("foreign_keys", 1), ("secure_delete", 1), ("busy_timeout", 30_000)],
)
def test_sqlite_is_set_up(migrated: Database, pragma: str, value: object) -> None:
    with migrated.reading() as session:
        assert session.execute(text(f"PRAGMA {pragma}")).scalar_one() == value


def test_moments_come_back_in_utc(migrated: Database) -> None:
    moment = datetime(2024, 5, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
    with migrated.writing() as session:
        session.add(UserRow(id="usr_1", name="Ada", is_admin=False, created_at=moment))
    with migrated.reading() as session:
        row = session.get_one(UserRow, "usr_1")
        assert row.created_at == moment
        assert row.created_at.tzinfo is UTC


def test_a_naive_moment_is_refused(migrated: Database) -> None:
    with pytest.raises(StatementError, match="timezone"), migrated.writing() as session:
        session.add(UserRow(id="usr_1", name="Ada", is_admin=False, created_at=datetime(2024, 5, 1)))


def test_errors_do_not_quote_what_was_written(migrated: Database) -> None:
    def write() -> None:
        with migrated.writing() as session:
            session.add(UserRow(id="usr_1", name="secret name", is_admin=False, created_at=datetime.now(UTC)))

    write()
    with pytest.raises(IntegrityError) as raised:
        write()
    assert "secret name" not in str(raised.value)


def test_the_tables_can_be_made_in_postgresql() -> None:
    statements: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://",
        lambda sql, *_, **__: statements.append(str(sql.compile(dialect=engine.dialect))),
    )
    Base.metadata.create_all(engine, checkfirst=False)
    assert any(statement.endswith("WHERE deleted_at IS NULL") for statement in statements)
