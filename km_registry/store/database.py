"""The database: how it is opened, brought to the present schema and written to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, event, func, make_url, select, text
from sqlalchemy.orm import Session

from km_registry.errors import ConflictError

_ANY_POSTGRESQL = ("postgresql", "postgres")
MIGRATIONS = Path(__file__).parents[1] / "migrations"
_WRITES = "km_writes"
_BUSY_MS = 30_000
#: Any constant of our own: who holds this lock in PostgreSQL is migrating.
_MIGRATION_LOCK = 0x6B6D5F31
_SERIAL_LOCK = 0x6B6D5F32


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN comes too late and never before DDL; `_begin` issues it instead.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        "foreign_keys=ON",
        # Deleted knowledge must not stay readable in free pages.
        "secure_delete=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    # The write lock at once: a reader that turns writer may find its snapshot old and fail without waiting.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def database_url(url: str) -> URL:
    """The URL with a driver that is installed: PostgreSQL is reached by psycopg, unless it names another."""
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername in _ANY_POSTGRESQL else parsed


class Database:
    """Connections to one database, SQLite or PostgreSQL. Thread-safe."""

    def __init__(self, url: str) -> None:
        parsed = database_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = create_engine(
            parsed,
            # Parameters hold titles; they must not appear in error messages and so in logs.
            hide_parameters=True,
            pool_pre_ping=not self.is_sqlite,
            # PostgreSQL takes no NaN; SQLite would, and whoever reads it from there then fails.
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        self._reader = self.engine
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin)
        else:
            # One snapshot for all that a session reads, as SQLite's readers have.
            self._reader = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._writer = self.engine.execution_options(**{_WRITES: True})

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to a revision; safe when several processes do so at once."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads, from one snapshot."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def looking_up(self) -> Iterator[Connection]:
        """A connection for the few statements that every request executes: without entities, and made once
        with bound parameters, they take a quarter of the time."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back on any exception."""
        with Session(self._writer) as session, session.begin():
            yield session

    def moment(self, session: Session) -> datetime:
        """The present moment by the database's clock, in UTC. SQLite's is that of this machine.

        What several machines compare is written and read by it: leases, heartbeats.
        """
        if self.is_sqlite:
            return datetime.now(UTC)
        moment: datetime = session.scalars(select(func.clock_timestamp())).one()
        return moment.astimezone(UTC)

    def serialize(self, session: Session) -> None:
        """Let no other transaction that asks for the same run beside this one; SQLite has one writer."""
        if not self.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SERIAL_LOCK})

    def checkpoint(self) -> None:
        """Empty SQLite's write-ahead log, which keeps old versions of pages. ConflictError when in use."""
        if not self.is_sqlite:
            return
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if busy:
            raise ConflictError(
                "the database is being read and its log still holds what was deleted; purge again in a moment"
            )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
