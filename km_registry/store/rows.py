"""From rows to records, and the look-ups that several parts share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from km_registry.errors import NotFoundError
from km_registry.store.layout import Layout
from km_registry.tables import (
    ApiKeyRow,
    DocumentRow,
    DocumentVersionRow,
    EventRow,
    GroupRow,
    JobRow,
    KMRow,
    ReceiptRow,
    RemovalRow,
    UserRow,
)
from km_registry.types import (
    DEFAULT_QUEUE,
    KM,
    ApiKey,
    Document,
    DocumentVersion,
    Event,
    Group,
    Job,
    JobState,
    Priority,
    Receipt,
    Removal,
    RemovalKind,
    Stage,
    User,
)

#: Columns of a row, whichever were asked for.
AnyRow = Row[*tuple[Any, ...]]


def as_user(row: UserRow) -> User:
    """The record of a row."""
    return User(row.id, row.name, row.is_admin, row.created_at)


def as_group(row: GroupRow) -> Group:
    """The record of a row."""
    return Group(row.id, row.name, row.created_at)


def as_key(row: ApiKeyRow) -> ApiKey:
    """The record of a row."""
    return ApiKey(
        row.id, row.user_id, row.name, row.created_at, row.expires_at, row.revoked_at, row.last_used_at
    )


def as_document(row: DocumentRow | AnyRow) -> Document:
    """The record of a row, or of one of its columns."""
    return Document(row.id, row.owner_id, row.title, row.sha256, row.size_bytes, row.created_at, row.version)


def as_job(row: JobRow) -> Job:
    """The record of a row."""
    return Job(
        id=row.id,
        document_id=row.document_id,
        state=JobState(row.state),
        attempt=row.attempt,
        stage=Stage(row.stage),
        step=row.step,
        total_steps=row.total_steps,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        heartbeat_at=row.heartbeat_at,
        error=row.error,
        version=row.version,
        crashes=row.crashes,
        retries=row.retries,
        not_before=row.not_before,
        priority=Priority(row.priority),
        queue=row.recipe.get("queue") or DEFAULT_QUEUE,
    )


def as_km(row: KMRow | AnyRow, layout: Layout) -> KM:
    """The record of a row, or of one of its columns."""
    return KM(
        id=row.id,
        engine_id=row.engine_id,
        document_id=row.document_id,
        job_id=row.job_id,
        attempt=row.attempt,
        digest=row.digest,
        path=str(layout.km_dir(row.id)),
        base_fingerprint=row.base_fingerprint,
        created_at=row.created_at,
        metrics=row.metrics,
        version=row.version,
    )


def as_version(row: DocumentVersionRow) -> DocumentVersion:
    """The record of a row."""
    return DocumentVersion(
        row.document_id, row.version, row.title, row.sha256, row.size_bytes, row.created_at
    )


def as_event(row: EventRow) -> Event:
    """The record of a row."""
    return Event(row.id, row.document_id, row.job_id, row.kind, row.data, row.created_at)


def as_receipt(row: ReceiptRow) -> Receipt:
    """The record of a row."""
    return Receipt(row.document_id, row.owner_id, row.requested_at, row.completed_at, row.purged)


def as_removal(row: RemovalRow) -> Removal:
    """The record of a row."""
    return Removal(
        row.id,
        RemovalKind(row.kind),
        row.owner_id,
        row.requested_at,
        row.completed_at,
        row.document_id,
        row.version,
        tuple(row.km_ids),
        row.purged,
    )


def live_document(session: Session, document_id: str, *, lock: bool = False) -> DocumentRow:
    """The row of a document that is not deleted; NotFoundError otherwise."""
    query = select(DocumentRow).where(DocumentRow.id == document_id, DocumentRow.deleted_at.is_(None))
    # Not against those who only refer to the row: a worker that notes an event of the document holds its job,
    # which whoever is here may want next, and the two would wait for each other.
    row = session.scalars(query.with_for_update(key_share=True) if lock else query).one_or_none()
    if row is None:
        raise NotFoundError
    return row


def find_job(session: Session, job_id: str) -> JobRow:
    """The row of a job; NotFoundError otherwise."""
    row = session.scalars(select(JobRow).where(JobRow.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}; its document may have been deleted")
    return row


def latest_job(session: Session, document_id: str) -> JobRow:
    """The row of the document's latest job; NotFoundError otherwise."""
    query = select(JobRow).where(JobRow.document_id == document_id).order_by(JobRow.sequence.desc()).limit(1)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFoundError
    return row


def add_purged(row: DocumentRow, removed: dict[str, int]) -> dict[str, Any]:
    """Add up in the row, so that purges in several runs, for new versions too, report the whole."""
    row.purged = row.purged | {kind: count + row.purged.get(kind, 0) for kind, count in removed.items()}
    return row.purged
