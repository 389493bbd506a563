"""Migrations, on both databases: up from every revision that was released, with what lay in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    func,
    select,
    text,
)

from km_registry.store.database import MIGRATIONS, Database
from km_registry.tables import Base

#: Columns that may be empty, but not together with another one.
NEEDED = {"grants": {"user_id"}}
_NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def released() -> list[str]:
    """Every revision, oldest first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table."""
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
        yield opened
        opened.close()
        return
    with request.getfixturevalue("postgres").database(empty=True) as url:
        opened = Database(url)
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def _no_leftover_temporaries() -> None:
    """There is no data directory here."""


def tables(connection: Connection) -> list[Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def fill(connection: Connection) -> dict[str, int]:
    """A row in every table; how many each has."""
    for table in tables(connection):
        connection.execute(table.insert().values(row_of(table)))
    return counts(connection)


def counts(connection: Connection) -> dict[str, int]:
    return {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in tables(connection)
    }


def row_of(table: Table) -> dict[str, Any]:
    """Values that every constraint takes: the row that they refer to has the same ones."""
    needed = NEEDED.get(table.name, set())
    return {
        column.name: _value(column.type)
        for column in table.columns
        if not column.nullable or column.name in needed
    }


def _value(kind: Any) -> Any:
    match kind:
        case DateTime():
            return _NOW
        case Boolean():
            return False
        case Integer():
            return 1
        case JSON():
            return {"kept": True}
        case String():
            return "kept"
    raise AssertionError(f"no value is known for {kind!r}: add one")


@pytest.mark.parametrize("revision", released())
def test_what_lay_in_a_released_revision_lies_in_the_newest(database: Database, revision: str) -> None:
    database.migrate(revision)
    with database.writing() as session:
        before = fill(session.connection())
    database.migrate()
    with database.reading() as session:
        after = counts(session.connection())
        differences = compare_metadata(
            MigrationContext.configure(session.connection(), opts={"compare_type": True}), Base.metadata
        )
    assert differences == []
    assert {name: after[name] for name in before} == before
    # The columns' types too, as those who read them find.
    with database.reading() as session:
        for table in Base.metadata.sorted_tables:
            session.execute(select(table)).all()


def test_a_migration_that_fails_changes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    database.migrate("0001")
    with database.writing() as session:
        before = fill(session.connection())

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_index", fail, raising=False)
        with pytest.raises(OSError, match="no space left"):
            database.migrate()
    with database.reading() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
        assert counts(session.connection()) == before
    database.migrate()


def test_partial_indexes_have_their_conditions(database: Database) -> None:
    database.migrate()
    with database.reading() as session:
        if database.is_sqlite:
            said = session.scalars(text("SELECT sql FROM sqlite_master WHERE type = 'index'")).all()
        else:
            said = session.scalars(text("SELECT indexdef FROM pg_indexes")).all()
    partial = [one for one in said if one and " WHERE " in one.upper()]
    declared = [
        index
        for table in Base.metadata.sorted_tables
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    ]
    assert len(partial) == len(declared)
