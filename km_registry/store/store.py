"""What every part of the registry works with: database, files, a transaction that announces its events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy.orm import Session

from km_registry.artifact_store.base import ArtifactStore
from km_registry.artifact_store.opening import open_artifacts
from km_registry.config import RegistrySettings
from km_registry.events import Notifier
from km_registry.json_data import finite
from km_registry.store.database import Database
from km_registry.store.layout import Layout
from km_registry.tables import EventRow


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


class Transaction:
    """One transaction on the database, and the events that it will have made."""

    def __init__(self, session: Session, database: Database) -> None:
        self.session = session
        self._database = database
        self._moment: datetime | None = None
        self.events: list[EventRow] = []

    def moment(self) -> datetime:
        """When the transaction runs, by the database's clock: for what machines compare."""
        if self._moment is None:
            self._moment = self._database.moment(self.session)
        return self._moment

    def emit(self, document_id: str, job_id: str, kind: str, data: dict[str, Any] | None = None) -> None:
        """Append an event.

        Call it after the transaction has changed the job's row: holding that row is what keeps the
        order of ids the order of commits.
        """
        said = finite(data or {})
        row = EventRow(document_id=document_id, job_id=job_id, kind=kind, data=said, created_at=now())
        self.session.add(row)
        self.events.append(row)


@dataclass(frozen=True, slots=True)
class Store:
    """Database, files, artifacts, notifier and limits of one registry."""

    settings: RegistrySettings
    database: Database
    layout: Layout
    notifier: Notifier
    artifacts: ArtifactStore

    @classmethod
    def open(cls, settings: RegistrySettings, notifier: Notifier) -> Self:
        """Make directories and bring the schema up to date as needed. ConflictError when artifacts lie in the
        data directory, and the settings say that they are in a shared store."""
        layout = Layout.of(settings)
        artifacts = open_artifacts(settings, layout)
        layout.create()
        database = Database(settings.effective_database_url)
        try:
            database.migrate()
        except BaseException:
            database.close()
            raise
        return cls(settings, database, layout, notifier, artifacts)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write; followers are woken only once it is committed."""
        with self.database.writing() as session:
            transaction = Transaction(session, self.database)
            yield transaction
            session.flush()
            announced = [(event.document_id, event.id) for event in transaction.events]
        for document_id, event_id in announced:
            self.notifier.notify(document_id, event_id)
