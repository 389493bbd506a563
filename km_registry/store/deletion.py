"""Deletion: tombstone (gone for everybody), purge (gone from disk), receipt (proof that holds no content).

Each step can be repeated; a restart goes on with `pending`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from km_registry.artifacts import purge_dir
from km_registry.composites import forget_kms
from km_registry.errors import ConflictError, NotFoundError
from km_registry.store import audit
from km_registry.store.access import require
from km_registry.store.jobs import cancel_unfinished
from km_registry.store.layout import document_key
from km_registry.store.rows import add_purged, as_document, as_receipt
from km_registry.store.store import Store, now
from km_registry.tables import DocumentRow, DocumentVersionRow, EventRow, JobRow, KMRow, ReceiptRow
from km_registry.types import Action, Document, Principal, Receipt

#: What is purged by row, in an order that the references between them allow.
_TABLES = (("kms", KMRow), ("events", EventRow), ("jobs", JobRow), ("versions", DocumentVersionRow))


def tombstone(store: Store, principal: Principal, document_id: str) -> Document:
    """Take the document away from everybody and cancel its unfinished job, in one transaction."""
    with (
        audit.refusals(store, principal, "document.delete", document_id),
        store.transaction() as transaction,
    ):
        session = transaction.session
        row = require(session, principal, Action.DELETE, document_id, lock=True)
        row.deleted_at, row.deleted_by = now(), principal.user_id
        cancel_unfinished(transaction, document_id)
        audit.note(session, principal, "document.delete", document_id)
        return as_document(row)


def purge(store: Store, document_id: str) -> dict[str, Any]:
    """Remove everything that was made of a tombstoned document; what was removed, all runs together.

    StoreUnavailableError when the shared store is away: then purge again.
    """
    with store.database.reading() as session:
        receipt = session.get(ReceiptRow, document_id)
        if receipt is not None:
            return receipt.purged
        query = select(DocumentRow).where(DocumentRow.id == document_id)
        _require_tombstoned(session.scalars(query).one_or_none(), document_id)
        jobs = session.scalars(select(JobRow.id).where(JobRow.document_id == document_id)).all()
        reserved = session.scalars(select(JobRow.km_id).where(JobRow.document_id == document_id)).all()
    composites, composite_bytes = forget_kms(
        store.layout.composites, {km_id for km_id in reserved if km_id is not None}
    )
    files = {
        "text_bytes": purge_dir(store.layout.document_dir(document_id)),
        "adapter_bytes": sum(purge_dir(store.layout.km_dir(km_id)) for km_id in reserved if km_id),
        "composites": composites,
        "composite_bytes": composite_bytes,
        "passage_bytes": purge_dir(store.layout.passages_dir(document_id)),
        "work_bytes": sum(purge_dir(store.layout.work_dir(job_id)) for job_id in jobs),
    }
    if store.artifacts.is_shared:
        # Whatever was ever stored of it, by whichever machine and attempt.
        shared = store.artifacts.forget(document_key(document_id))
        files |= {"store_objects": shared.objects, "store_bytes": shared.size_bytes}
    purged = _purge_rows(store, document_id, files)
    store.database.checkpoint()
    return purged


def forget_copies(store: Store, document_id: str, km_ids: Collection[str], *, whole: bool) -> None:
    """Remove what lies on this machine of KMs, or of the whole document, and is not where it is kept."""
    forget_kms(store.layout.composites, set(km_ids))
    if not store.artifacts.is_shared:
        return
    for km_id in km_ids:
        purge_dir(store.layout.km_dir(km_id))
    if whole:
        purge_dir(store.layout.document_dir(document_id))
        purge_dir(store.layout.passages_dir(document_id))


def complete(store: Store, document_id: str, purged: dict[str, Any]) -> Receipt:
    """Write the receipt and forget the document; the receipt there is, when it was written before."""
    with store.transaction() as transaction:
        session = transaction.session
        # Locked first: another gateway may be completing the same deletion.
        document, existing = _locked(session, document_id), session.get(ReceiptRow, document_id)
        if existing is not None:
            return as_receipt(existing)
        document = _require_tombstoned(document, document_id)
        if document.sha256 or session.scalar(
            select(JobRow.id).where(JobRow.document_id == document_id).limit(1)
        ):
            raise ConflictError(f"{document_id} is not purged; purge it before its receipt is written")
        assert document.deleted_at is not None, "it is tombstoned"
        receipt = ReceiptRow(
            document_id=document_id,
            owner_id=document.owner_id,
            requested_at=document.deleted_at,
            completed_at=now(),
            purged=purged,
            requested_by=document.deleted_by,
        )
        session.add(receipt)
        session.delete(document)
        return as_receipt(receipt)


def receipt_of(store: Store, principal: Principal, document_id: str) -> Receipt:
    """The receipt, for who uploaded the document and who deleted it."""
    with store.database.reading() as session:
        row = session.get(ReceiptRow, document_id)
        if row is None or principal.user_id not in (row.owner_id, row.requested_by):
            raise NotFoundError
        return as_receipt(row)


def pending(store: Store) -> list[Document]:
    """Documents that are tombstoned and have no receipt, the longest waiting first."""
    query = select(DocumentRow).where(DocumentRow.deleted_at.is_not(None)).order_by(DocumentRow.deleted_at)
    with store.database.reading() as session:
        return [as_document(row) for row in session.scalars(query)]


def _locked(session: Session, document_id: str) -> DocumentRow | None:
    query = select(DocumentRow).where(DocumentRow.id == document_id)
    return session.scalars(query.with_for_update()).one_or_none()


def _require_tombstoned(row: DocumentRow | None, document_id: str) -> DocumentRow:
    if row is None:
        raise NotFoundError
    if row.deleted_at is None:
        raise ConflictError(f"{document_id} is not deleted; tombstone it before it is purged")
    return row


def _purge_rows(store: Store, document_id: str, files: dict[str, int]) -> dict[str, Any]:
    with store.transaction() as transaction:
        session = transaction.session
        found, completed = _locked(session, document_id), session.get(ReceiptRow, document_id)
        if completed is not None:
            return completed.purged  # by another gateway, meanwhile
        row = _require_tombstoned(found, document_id)
        removed = dict(files)
        for name, table in _TABLES:
            statement = delete(table).where(table.document_id == document_id).returning(table.document_id)
            removed[name] = len(session.scalars(statement).all())
        row.title, row.sha256, row.size_bytes = "", "", 0
        return add_purged(row, removed)
