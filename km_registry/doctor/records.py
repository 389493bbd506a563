"""Records: the database itself, and rows that need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import func, select, text

from km_registry.doctor.findings import Finding
from km_registry.store.jobs import queue_job
from km_registry.store.rows import live_document
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, DocumentVersionRow, JobRow, KMRow
from km_registry.types import JobState

_RESTORE = "stop the server and restore the last backup into another data directory"
_UPLOAD = "delete the document and upload it again"


def database(store: Store) -> Iterator[Finding]:
    """SQLite's own examination; PostgreSQL's is its operator's."""
    if not store.database.is_sqlite:
        return
    with store.database.reading() as session:
        for (said,) in session.execute(text("PRAGMA integrity_check")):
            if said != "ok":
                yield Finding("registry.sqlite3", f"the database is damaged ({said})", _RESTORE)
        for table, _, parent, _ in session.execute(text("PRAGMA foreign_key_check")):
            yield Finding("registry.sqlite3", f"a row of {table} has lost its row of {parent}", _RESTORE)


def versions(store: Store) -> Iterator[Finding]:
    """Every document has the version that it says it has."""
    newest = (DocumentVersionRow.document_id == DocumentRow.id) & (
        DocumentVersionRow.version == DocumentRow.version
    )
    query = (
        select(DocumentRow.id, DocumentRow.sha256, DocumentVersionRow.sha256)
        .outerjoin(DocumentVersionRow, newest)
        .where(DocumentRow.deleted_at.is_(None))
    )
    with store.database.reading() as session:
        rows: Sequence[Any] = session.execute(query).all()
    for document_id, has, known in rows:
        if known is None:
            yield Finding(document_id, "its newest version is not recorded", _UPLOAD)
        elif has != known:
            yield Finding(document_id, "it and its newest version are of different texts", _UPLOAD)


def jobs(store: Store) -> Iterator[Finding]:
    """Every document has a job, and one whose newest job has succeeded has a KM."""
    latest = select(func.max(JobRow.sequence)).group_by(JobRow.document_id)
    query = (
        select(DocumentRow.id, JobRow.state, KMRow.id)
        .outerjoin(JobRow, (JobRow.document_id == DocumentRow.id) & JobRow.sequence.in_(latest))
        .outerjoin(KMRow, (KMRow.document_id == DocumentRow.id) & KMRow.retired_at.is_(None))
        .where(DocumentRow.deleted_at.is_(None))
    )
    with store.database.reading() as session:
        rows: Sequence[Any] = session.execute(query).all()
    for document_id, state, km_id in rows:
        again = trains_again(store, document_id)
        if state is None:
            yield Finding(document_id, "it has no job", "it will be trained", again)
        elif state == JobState.SUCCEEDED and km_id is None:
            yield Finding(document_id, "it was trained and has no KM", "it will be trained again", again)


def trains_again(store: Store, document_id: str) -> Callable[[], None]:
    """A repair: the document has a queued job afterwards, with the recipe of the last one."""

    def repair() -> None:
        with store.transaction() as transaction:
            row = live_document(transaction.session, document_id, lock=True)
            of_document = select(JobRow).where(JobRow.document_id == document_id)
            last = transaction.session.scalars(of_document.order_by(JobRow.sequence.desc()).limit(1)).first()
            if last is None or JobState(last.state).finished:
                queue_job(transaction, row, last.recipe if last else {})

    return repair
