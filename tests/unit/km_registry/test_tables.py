"""The tables and the migrations that make them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_mock_engine, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from km_registry.store.database import MIGRATIONS, Database
from km_registry.tables import ApiKeyRow, Base, KMRow, UserRow


@pytest.fixture
def migrated(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'migrated.sqlite3'}")
    database.migrate()
    yield database
    database.close()


def schema(database: Database) -> set[tuple[str, ...]]:
    """Every statement as its sorted parts, since the order of columns and constraints means nothing."""
    query = text(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
        "AND name != 'alembic_version'"
    )
    with database.reading() as session:
        return {
            tuple(sorted(part.strip(" \t\n)") for part in re.split(r",\s+", sql.replace('"', ""))))
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


OLD_DATA = """
INSERT INTO users VALUES ('usr_1', 'Ada', 0, '2026-01-01');
INSERT INTO documents VALUES (3, 'doc_1', 'usr_1', 'Kaldvik', 'aa', 12, '2026-01-02 03:04:05', NULL, '{}');
INSERT INTO documents VALUES (4, 'doc_2', 'usr_1', 'Gone', 'bb', 13, '2026-01-02', '2026-01-03', '{}');
INSERT INTO documents VALUES (5, 'doc_3', 'usr_1', '', '', 0, '2026-01-02', '2026-01-03', '{"jobs": 1}');
INSERT INTO jobs (sequence, id, document_id, state, attempt, stage, step, total_steps, recipe, created_at)
    VALUES (7, 'job_1', 'doc_1', 'succeeded', 1, 'done', 0, 0, '{}', '2026-01-02');
INSERT INTO kms VALUES (9, 'km_1', 'doc_1', 'job_1', 1, 'cc', 'f', '{"recovered": 0.8}', '2026-01-02');
"""


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Database]:
    """A database of the first revision, with data."""
    database = Database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    database.migrate("0001")
    with database.writing() as session:
        for statement in OLD_DATA.strip().split(";\n"):
            session.connection().exec_driver_sql(statement)
    yield database
    database.close()


def test_what_was_there_before_versions_is_version_one(released: Database) -> None:
    released.migrate()
    with released.reading() as session:
        versions = session.execute(
            text("SELECT document_id, version, title, sha256, size_bytes, purged_at FROM document_versions")
        ).all()
        # A document that only waits for its receipt has nothing left to have versions of.
        assert sorted(versions) == [
            ("doc_1", 1, "Kaldvik", "aa", 12, None),
            ("doc_2", 1, "Gone", "bb", 13, None),
        ]
        assert session.scalars(text("SELECT version FROM documents")).all() == [1, 1, 1]
        assert session.scalars(text("SELECT version FROM jobs")).all() == [1]
        km = session.scalars(select(KMRow)).one()
        assert (km.id, km.engine_id, km.version, km.retired_at) == ("km_1", 9, 1, None)
        assert km.metrics == {"recovered": 0.8}


def test_ids_given_before_a_migration_are_not_given_again(released: Database) -> None:
    released.migrate()
    with released.writing() as session:
        session.execute(text("DELETE FROM kms"))
        fields = {"document_id": "doc_1", "job_id": "job_1", "digest": "d", "base_fingerprint": "f"}
        row = KMRow(id="km_2", attempt=1, metrics={}, created_at=datetime.now(UTC), version=1, **fields)
        session.add(row)
        session.flush()
        assert row.engine_id == 10


def test_what_was_there_before_grants_belongs_to_who_uploaded_it(released: Database) -> None:
    with released.writing() as session:
        connection = session.connection()
        connection.exec_driver_sql("INSERT INTO users VALUES ('usr_2', 'Ada', 1, '2026-01-02')")
        connection.exec_driver_sql("INSERT INTO api_keys VALUES ('ab', 'usr_1', '2026-01-01')")
    released.migrate()
    with released.reading() as session:
        grants = session.execute(text("SELECT document_id, user_id, group_id, role FROM grants")).all()
        # A deleted document is nobody's.
        assert grants == [("doc_1", "usr_1", None, "owner")]
        key = session.scalars(select(ApiKeyRow)).one()
        assert (key.sha256, key.user_id, key.name) == ("ab", "usr_1", "first")
        assert key.id.startswith("key_")
        assert (key.expires_at, key.revoked_at, key.last_used_at) == (None, None, None)
        names = session.execute(text("SELECT id, name FROM users ORDER BY id")).all()
        assert names == [("usr_1", "Ada"), ("usr_2", "Ada usr_2")]


def test_one_km_of_a_document_answers(released: Database) -> None:
    released.migrate()
    insert = (
        "INSERT INTO jobs (sequence, id, document_id, state, attempt, stage, step, total_steps, recipe, "
        "created_at) VALUES (8, 'job_2', 'doc_1', 'succeeded', 1, 'done', 0, 0, '{}', '2026-01-02')"
    )
    with released.writing() as session:
        session.connection().exec_driver_sql(insert)
    fields = {"document_id": "doc_1", "job_id": "job_2", "digest": "d", "base_fingerprint": "f"}
    with pytest.raises(IntegrityError), released.writing() as session:
        session.add(KMRow(id="km_2", attempt=1, metrics={}, created_at=datetime.now(UTC), **fields))


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
