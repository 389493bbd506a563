"""Rows from one database to another, of whichever kinds: a backup's are always in SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Table, func, insert, select, text

from km_registry.store.database import Database
from km_registry.tables import Base

_AT_ONCE = 500
#: What runs and where, which is another one's matter wherever the records are put.
_NOT_RECORDS = {"installation", "gateways", "evictions"}


def snapshot(source: Database, file: Path) -> None:
    """The records as they are at one moment, as a new SQLite file. Writers are not held up."""
    file.unlink(missing_ok=True)
    if source.is_sqlite:
        _copy_sqlite(source, file)
        return
    with closing_database(file) as target:
        target.migrate()
        copy_rows(source, target)


def copy_rows(source: Database, target: Database) -> None:
    """Every row of every table, from one moment, into tables of the present schema that are empty."""
    with source.reading() as reading, target.writing() as writing:
        for table in _tables():
            result = reading.execute(select(table).order_by(*table.primary_key))
            for rows in result.mappings().partitions(_AT_ONCE):
                writing.execute(insert(table), [dict(row) for row in rows])
        for table in _tables():
            if _counts(table):
                last = _last_id(reading.connection(), table, is_sqlite=source.is_sqlite)
                _go_on_after(writing.connection(), table, last, is_sqlite=target.is_sqlite)


def _tables() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if table.name not in _NOT_RECORDS]


def is_empty(database: Database) -> bool:
    """Whether no table has a row."""
    with database.reading() as session:
        return all(session.scalar(select(func.count()).select_from(table)) == 0 for table in _tables())


class closing_database(closing[Database]):  # noqa: N801  used like contextlib's
    """A database in this SQLite file, closed at the end; all that is in it lies in the one file then."""

    def __init__(self, file: Path) -> None:
        super().__init__(Database(f"sqlite:///{file}"))


def _copy_sqlite(source: Database, file: Path) -> None:
    path = source.engine.url.database
    assert path, "the registry's SQLite is a file"
    with closing(sqlite3.connect(path)) as reading, closing(sqlite3.connect(file)) as writing:
        # In one step: begun anew at every write it might never end.
        reading.backup(writing, pages=-1)


def _counts(table: Table) -> bool:
    return bool(table.dialect_options["sqlite"]["autoincrement"])


def _last_id(connection: Connection, table: Table, *, is_sqlite: bool) -> int:
    """The last id that was given, also to a row that is gone: ids are never given again."""
    if is_sqlite:
        query = text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = :name")
        return int(connection.execute(query, {"name": table.name}).scalar_one())
    (column,) = table.primary_key
    query = text(f"SELECT last_value, is_called FROM {_sequence(table.name, column.name)}")  # noqa: S608
    last, given = connection.execute(query).one()
    return int(last) if given else 0


def _go_on_after(connection: Connection, table: Table, last: int, *, is_sqlite: bool) -> None:
    if last == 0:
        return
    if is_sqlite:
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
        connection.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"),
            {"name": table.name, "last": last},
        )
        return
    (column,) = table.primary_key
    connection.execute(
        text("SELECT setval(:sequence, :last)"),
        {"sequence": _sequence(table.name, column.name), "last": last},
    )


def _sequence(table: str, column: str) -> str:
    """The name that PostgreSQL gives the sequence of a serial column."""
    return f"{table}_{column}_seq"
