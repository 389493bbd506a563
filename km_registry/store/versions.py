"""New versions of a document, and the removal of what they, or newer KMs, took the place of.

Once its training has stopped, nothing of a former version is needed but its KM, which answers until the new
version's is published. What is superseded is looked up, let go of by whoever uses it, then purged; each step
can be repeated, and a restart goes on with `pending`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from km_registry.artifacts import purge_dir
from km_registry.composites import forget_kms
from km_registry.errors import ConflictError, NotFoundError, StoreUnavailableError
from km_registry.store import audit, handover, quota
from km_registry.store.access import require
from km_registry.store.content import checked
from km_registry.store.jobs import cancel_unfinished, queue_job
from km_registry.store.rows import (
    add_purged,
    as_document,
    as_job,
    as_km,
    as_version,
    find_job,
    latest_job,
    live_document,
)
from km_registry.store.store import Store, Transaction, now
from km_registry.tables import DocumentRow, DocumentVersionRow, JobRow, KMRow
from km_registry.types import KM, Action, Document, DocumentVersion, Job, Principal, Superseded


def add_version(session: Session, document: DocumentRow) -> None:
    """Note the version that the document has now, within the caller's transaction."""
    row = DocumentVersionRow(
        document_id=document.id,
        version=document.version,
        title=document.title,
        sha256=document.sha256,
        size_bytes=document.size_bytes,
        created_at=now(),
    )
    session.add(row)
    session.flush()


def change(
    store: Store,
    principal: Principal,
    document_id: str,
    title: str | None,
    text: str,
    recipe: dict[str, Any],
) -> tuple[Document, Job, bool]:
    """Give the document a new version with a queued job; its unfinished job of an older one is cancelled.

    The text that it has now, under the same title, changes nothing.
    """
    try:
        with (
            audit.refusals(store, principal, "document.update", document_id),
            store.transaction() as transaction,
        ):
            row = require(transaction.session, principal, Action.UPDATE, document_id, lock=True)
            changed = _change(store, transaction, row, title, text, recipe)
            if changed is not None:
                audit.note(transaction.session, principal, "document.update", document_id)
            job = changed or as_job(latest_job(transaction.session, document_id))
            return as_document(row), job, changed is not None
    except IntegrityError as error:
        _remove_unused_text(store, document_id)
        raise ConflictError(
            "another document of yours has this very text; ask that one, or delete it first"
        ) from error
    except (OSError, SQLAlchemyError, StoreUnavailableError):
        # The disk may be full, or the database or the store away, so this may fail as well. Then the next
        # version's text is written over what lies there.
        with contextlib.suppress(OSError, SQLAlchemyError, StoreUnavailableError):
            _remove_unused_text(store, document_id)
        raise


def _change(
    store: Store,
    transaction: Transaction,
    row: DocumentRow,
    title: str | None,
    text: str,
    recipe: dict[str, Any],
) -> Job | None:
    content = checked(row.title if title is None else title, text, store.settings.max_document_bytes)
    if (content.sha256, content.title) == (row.sha256, row.title):
        return None
    cancel_unfinished(transaction, row.id)
    grown = len(content.data) - row.size_bytes
    quota.check(transaction.session, store.settings, row.owner_id, size=grown, trainings=1)
    row.version += 1
    row.title, row.sha256, row.size_bytes = content.title, content.sha256, len(content.data)
    add_version(transaction.session, row)
    # Written while the row is held: the next version's number is nobody else's.
    store.artifacts.write(store.layout.text(row.id, row.version), content.data)
    return queue_job(transaction, row, recipe)


def _remove_unused_text(store: Store, document_id: str) -> None:
    """Remove the text of a version that was rolled back, unless another has taken its number since."""
    with store.transaction() as transaction:
        row = live_document(transaction.session, document_id, lock=True)
        store.artifacts.remove(store.layout.text(document_id, row.version + 1))


def versions_of(store: Store, document_id: str) -> list[DocumentVersion]:
    """The document's versions, newest first."""
    query = select(DocumentVersionRow).where(DocumentVersionRow.document_id == document_id)
    with store.database.reading() as session:
        rows = session.scalars(query.order_by(DocumentVersionRow.version.desc()))
        return [as_version(row) for row in rows]


def previous_km(store: Store, job_id: str) -> KM | None:
    """The KM of an older version than the job's, which answers for the document still."""
    with store.database.reading() as session:
        job = find_job(session, job_id)
        row = session.scalars(
            select(KMRow).where(
                KMRow.document_id == job.document_id,
                KMRow.retired_at.is_(None),
                KMRow.version < job.version,
            )
        ).one_or_none()
        return None if row is None else as_km(row, store.layout)


def pending(store: Store) -> list[str]:
    """Ids of the documents of which something superseded is still there."""
    former = (
        select(DocumentRow.id)
        .join(DocumentVersionRow, DocumentVersionRow.document_id == DocumentRow.id)
        .where(DocumentVersionRow.version < DocumentRow.version, DocumentVersionRow.purged_at.is_(None))
    )
    retired = (
        select(DocumentRow.id)
        .join(KMRow, KMRow.document_id == DocumentRow.id)
        .where(KMRow.retired_at.is_not(None))
    )
    either = DocumentRow.id.in_(former.union(retired))
    live = select(DocumentRow.id).where(either, DocumentRow.deleted_at.is_(None))
    with store.database.reading() as session:
        return list(session.scalars(live.order_by(DocumentRow.sequence)))


def superseded(store: Store, document_id: str) -> Superseded | None:
    """What of the document is superseded and still there; None when nothing is, or the document is gone."""
    with store.database.reading() as session:
        try:
            document = live_document(session, document_id)
        except NotFoundError:
            return None
        versions = session.scalars(
            select(DocumentVersionRow.version).where(
                DocumentVersionRow.document_id == document_id,
                DocumentVersionRow.version < document.version,
                DocumentVersionRow.purged_at.is_(None),
            )
        ).all()
        retired = session.scalars(
            select(KMRow).where(KMRow.document_id == document_id, KMRow.retired_at.is_not(None))
        ).all()
        former_jobs = (JobRow.document_id == document_id) & JobRow.version.in_(versions)
        jobs = session.scalars(
            select(JobRow.id).where(former_jobs | JobRow.id.in_([km.job_id for km in retired]))
        ).all()
        if not versions and not retired:
            return None
        kms = tuple(as_km(row, store.layout) for row in retired)
        return Superseded(document_id, tuple(versions), kms, tuple(jobs))


def purge(store: Store, gone: Superseded) -> dict[str, int]:
    """Remove what was superseded: texts, work, KMs; bytes and counts per kind. Idempotent."""
    km_ids = [km.id for km in gone.kms]
    with store.database.reading() as session:
        kept = select(KMRow.id).where(KMRow.document_id == gone.document_id, KMRow.id.not_in(km_ids))
        reserved = session.scalars(
            select(JobRow.km_id).where(JobRow.id.in_(gone.job_ids), JobRow.km_id.not_in(kept))
        ).all()
        digests = _texts_only_in(session, gone)
    layout, remove = store.layout, store.artifacts.remove
    composites, composite_bytes = forget_kms(store.layout.composites, set(km_ids))
    removed = {
        "text_bytes": sum(remove(layout.text(gone.document_id, version)) for version in gone.versions),
        # Also what a publication that was cut short left under the id that was reserved for it.
        "adapter_bytes": sum(
            remove(layout.km(gone.document_id, km_id)) for km_id in {*km_ids, *reserved} if km_id is not None
        ),
        "composites": composites,
        "composite_bytes": composite_bytes,
        "passage_bytes": sum(remove(layout.passages_of(gone.document_id, digest)) for digest in digests),
        "work_bytes": sum(_purge_work(store, gone.document_id, job_id) for job_id in gone.job_ids),
    }
    return _purge_rows(store, gone, removed)


def _purge_work(store: Store, document_id: str, job_id: str) -> int:
    handed_over = handover.withdraw(store, document_id, job_id)
    return max(purge_dir(store.layout.work_dir(job_id)), handed_over.size_bytes)


def _texts_only_in(session: Session, gone: Superseded) -> list[str]:
    """Digests of the superseded versions' texts, but of one that a version which stays has again."""
    of_document = DocumentVersionRow.document_id == gone.document_id
    stays = select(DocumentVersionRow.sha256).where(
        of_document, DocumentVersionRow.version.not_in(gone.versions), DocumentVersionRow.purged_at.is_(None)
    )
    gone_only = select(DocumentVersionRow.sha256).where(
        of_document, DocumentVersionRow.version.in_(gone.versions), DocumentVersionRow.sha256.not_in(stays)
    )
    return list(session.scalars(gone_only))


def _purge_rows(store: Store, gone: Superseded, removed: dict[str, int]) -> dict[str, int]:
    with store.transaction() as transaction:
        session = transaction.session
        row = session.scalars(
            select(DocumentRow).where(DocumentRow.id == gone.document_id).with_for_update(key_share=True)
        ).one_or_none()
        if row is None:
            return removed
        session.execute(
            update(DocumentVersionRow)
            .where(
                DocumentVersionRow.document_id == gone.document_id,
                DocumentVersionRow.version.in_(gone.versions),
            )
            .values(purged_at=now())
        )
        statement = delete(KMRow).where(KMRow.id.in_([km.id for km in gone.kms])).returning(KMRow.id)
        removed["kms"] = len(session.scalars(statement).all())
        add_purged(row, removed)
    return removed
