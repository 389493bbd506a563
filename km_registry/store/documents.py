"""Documents: taking them in, finding them, reading them."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from km_registry.access import may
from km_registry.artifacts import atomic_write, purge_dir
from km_registry.errors import ArtifactError, DocumentTooLargeError, InvalidDocumentError, NotFoundError
from km_registry.ids import new_id
from km_registry.store.jobs import queue_job
from km_registry.store.rows import as_document, as_job, as_km, find_job, latest_job, live_document
from km_registry.store.store import Store, now
from km_registry.tables import DocumentRow, JobRow, KMRow, UserRow
from km_registry.types import KM, Action, Document, Job, JobState, Principal

MAX_TITLE_CHARS = 300


@dataclass(frozen=True, slots=True)
class _Content:
    title: str
    data: bytes
    sha256: str


def add(
    store: Store, principal: Principal, title: str, text: str, recipe: dict[str, Any]
) -> tuple[Document, Job, bool]:
    """Take a document in, with a queued job; or find the one that the owner already has of this text."""
    content = _checked(title, text, store.settings.max_document_bytes)
    existing = _existing(store, principal, content.sha256)
    if existing is not None:
        return *existing, False
    document_id = new_id("doc")
    atomic_write(store.layout.text_file(document_id), content.data)
    try:
        return *_insert(store, principal, document_id, content, recipe), True
    except IntegrityError:
        # Another upload of the same text was faster; its document is the one.
        purge_dir(store.layout.document_dir(document_id))
        existing = _existing(store, principal, content.sha256)
        if existing is None:
            raise
        return *existing, False
    except BaseException:
        purge_dir(store.layout.document_dir(document_id))
        raise


def get(store: Store, principal: Principal, document_id: str, action: Action) -> Document:
    """The document, if the principal may do this with it; NotFoundError otherwise, for whatever reason."""
    with store.database.reading() as session:
        document = as_document(live_document(session, document_id))
    if not may(principal, action, document):
        raise NotFoundError
    return document


def list_own(store: Store, principal: Principal, limit: int, before: str | None) -> list[Document]:
    """The principal's documents, newest first, those older than `before`."""
    owned = DocumentRow.owner_id == principal.user_id
    query = select(DocumentRow).where(owned, DocumentRow.deleted_at.is_(None))
    with store.database.reading() as session:
        if before is not None:
            cursor = session.scalar(select(DocumentRow.sequence).where(DocumentRow.id == before, owned))
            if cursor is None:
                raise NotFoundError(
                    f"there is no document {before} to list from; start from the newest again"
                )
            query = query.where(DocumentRow.sequence < cursor)
        rows = session.scalars(query.order_by(DocumentRow.sequence.desc()).limit(limit))
        return [as_document(row) for row in rows]


def read_text(store: Store, document_id: str) -> str:
    """The document's text; ArtifactError when the file is not what was uploaded."""
    with store.database.reading() as session:
        document = as_document(live_document(session, document_id))
    try:
        data = store.layout.text_file(document_id).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"the text of {document_id} is missing; delete the document and upload it again"
        ) from None
    if hashlib.sha256(data).hexdigest() != document.sha256:
        raise ArtifactError(f"the text of {document_id} was altered; delete the document and upload it again")
    return data.decode()


def job_of(store: Store, document_id: str) -> Job:
    """The document's latest job."""
    with store.database.reading() as session:
        return as_job(latest_job(session, document_id))


def km_of(store: Store, document_id: str) -> KM | None:
    """The document's latest KM."""
    query = select(KMRow).where(KMRow.document_id == document_id).order_by(KMRow.engine_id.desc()).limit(1)
    with store.database.reading() as session:
        row = session.scalars(query).one_or_none()
        return None if row is None else as_km(row, store.layout)


def of_job(store: Store, job_id: str) -> Document:
    """The document that a job trains, for its worker; NotFoundError once it is deleted."""
    with store.database.reading() as session:
        return as_document(live_document(session, find_job(session, job_id).document_id))


def kms_of_owner(store: Store, principal: Principal) -> list[KM]:
    """The latest KM of every document that the principal owns, newest first."""
    owned = (
        select(KMRow)
        .join(DocumentRow, DocumentRow.id == KMRow.document_id)
        .where(DocumentRow.owner_id == principal.user_id, DocumentRow.deleted_at.is_(None))
        .order_by(KMRow.engine_id.desc())
    )
    latest: dict[str, KM] = {}
    with store.database.reading() as session:
        for row in session.scalars(owned):
            latest.setdefault(row.document_id, as_km(row, store.layout))
    return list(latest.values())


def counts(store: Store) -> tuple[int, dict[JobState, int]]:
    """How many documents are kept, and how many jobs are in each state."""
    with store.database.reading() as session:
        documents = session.scalar(
            select(func.count()).select_from(DocumentRow).where(DocumentRow.deleted_at.is_(None))
        )
        jobs = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
    return documents or 0, {JobState(state): count for state, count in jobs}


def _checked(title: str, text: str, max_bytes: int) -> _Content:
    title = " ".join(title.split())
    if not title:
        raise InvalidDocumentError("the title is empty; give the document a title")
    if len(title) > MAX_TITLE_CHARS:
        raise InvalidDocumentError(f"the title has {len(title)} characters; shorten it to {MAX_TITLE_CHARS}")
    if any(unicodedata.category(character) == "Cc" for character in title):
        raise InvalidDocumentError("the title holds control characters; remove them")
    if not text.strip():
        raise InvalidDocumentError("the text is empty; there is nothing to learn from it")
    if "\0" in text:
        raise InvalidDocumentError("the text holds NUL characters; upload plain text, not a binary file")
    try:
        title.encode()
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidDocumentError(
            f"position {error.start} is a lone surrogate, which UTF-8 cannot hold; send valid Unicode"
        ) from None
    if len(data) > max_bytes:
        raise DocumentTooLargeError(
            f"the text has {len(data)} bytes, this server takes {max_bytes}; split it into several documents"
        )
    return _Content(title, data, hashlib.sha256(data).hexdigest())


def _existing(store: Store, principal: Principal, sha256: str) -> tuple[Document, Job] | None:
    with store.database.reading() as session:
        row = _live_with_content(session, principal, sha256)
        return None if row is None else (as_document(row), as_job(latest_job(session, row.id)))


def _live_with_content(session: Session, principal: Principal, sha256: str) -> DocumentRow | None:
    query = select(DocumentRow).where(
        DocumentRow.owner_id == principal.user_id,
        DocumentRow.sha256 == sha256,
        DocumentRow.deleted_at.is_(None),
    )
    return session.scalars(query).one_or_none()


def _insert(
    store: Store, principal: Principal, document_id: str, content: _Content, recipe: dict[str, Any]
) -> tuple[Document, Job]:
    with store.transaction() as transaction:
        session = transaction.session
        if session.get(UserRow, principal.user_id) is None:
            raise NotFoundError(f"there is no user {principal.user_id}; use a valid API key")
        row = DocumentRow(
            id=document_id,
            owner_id=principal.user_id,
            title=content.title,
            sha256=content.sha256,
            size_bytes=len(content.data),
            created_at=now(),
            purged={},
        )
        session.add(row)
        session.flush()
        job = queue_job(transaction, document_id, recipe)
        return as_document(row), job
