"""Documents: taking them in, finding them, reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from km_registry.artifacts import purge_dir, purge_file
from km_registry.errors import ArtifactError, NotFoundError, StoreUnavailableError
from km_registry.ids import new_id
from km_registry.store import audit, quota
from km_registry.store.access import allowed, visible_to
from km_registry.store.content import Content, checked
from km_registry.store.jobs import queue_job
from km_registry.store.layout import document_key
from km_registry.store.rows import as_document, as_job, as_km, as_version, find_job, latest_job, live_document
from km_registry.store.store import Store, now
from km_registry.store.versions import add_version
from km_registry.tables import DocumentRow, DocumentVersionRow, GrantRow, JobRow, KMRow, UserRow
from km_registry.types import KM, Action, Document, Job, JobState, Principal, Role, Training


def add(
    store: Store, principal: Principal, title: str, text: str, recipe: dict[str, Any]
) -> tuple[Document, Job, bool]:
    """Take a document in, with a queued job; or find the one that the owner already has of this text."""
    content = checked(title, text, store.settings.max_document_bytes)
    existing = _existing(store, principal, content.sha256)
    if existing is not None:
        return *existing, False
    document_id = new_id("doc")
    try:
        with _marked(store, document_id):
            store.artifacts.write(store.layout.text(document_id), content.data)
            return *_insert(store, principal, document_id, content, recipe), True
    except IntegrityError:
        # Another upload of the same text was faster; its document is the one.
        _take_back(store, document_id)
        existing = _existing(store, principal, content.sha256)
        if existing is None:
            raise
        return *existing, False
    except BaseException:
        _take_back(store, document_id)
        raise


def _take_back(store: Store, document_id: str) -> None:
    """Remove what was kept of an upload that came to nothing. While the shared store is away the mark stays,
    by which the next start removes the rest."""
    with suppress(StoreUnavailableError):
        store.artifacts.forget(document_key(document_id))
        purge_dir(store.layout.document_dir(document_id))
        return
    purge_file(store.layout.text_file(document_id))


@contextmanager
def _marked(store: Store, document_id: str) -> Iterator[None]:
    """Within it the document's directory is marked as one whose row may never come.

    A process that is killed leaves the mark, by which `recovery` knows what it may remove. That no row names
    a directory is not enough: a server that is started with another database by mistake finds none of them.
    """
    mark = store.layout.upload_mark(document_id)
    mark.parent.mkdir(mode=0o700)
    mark.touch(mode=0o600)
    yield
    # The row is committed: from here on nothing may fail and have the text removed.
    with suppress(OSError):
        mark.unlink()


def get(store: Store, principal: Principal, document_id: str, action: Action) -> Document:
    """The document, if the principal may do this with it; NotFoundError otherwise, for whatever reason.

    Refusals and exports are noted in the audit log here, and what was asked by `audit.note_asked`.
    """
    with audit.refusals(store, principal, f"document.{action}", document_id):
        document = allowed(store, principal, action, document_id)
    if action is Action.EXPORT:
        with store.transaction() as transaction:
            audit.note(transaction.session, principal, f"document.{action}", document_id)
    return document


def list_visible(
    store: Store, principal: Principal, limit: int, before: str | None, matching: str | None
) -> list[Document]:
    """The documents that the principal may read, newest first, those older than `before` and with `matching`
    in their titles."""
    visible = visible_to(principal)
    query = select(DocumentRow).where(visible, DocumentRow.deleted_at.is_(None))
    with store.database.reading() as session:
        if before is not None:
            cursor = session.scalar(select(DocumentRow.sequence).where(DocumentRow.id == before, visible))
            if cursor is None:
                raise NotFoundError(
                    f"there is no document {before} to list from; start from the newest again"
                )
            query = query.where(DocumentRow.sequence < cursor)
        if matching:
            query = query.where(DocumentRow.title.icontains(matching, autoescape=True))
        rows = session.scalars(query.order_by(DocumentRow.sequence.desc()).limit(limit))
        return [as_document(row) for row in rows]


def read_text(store: Store, document_id: str, version: int | None) -> str:
    """The text of the document's newest version, or of the named one.

    ArtifactError when the file is not what was uploaded, NotFoundError when there is no such version,
    StoreUnavailableError when it is not here and the shared store is away.
    """
    with store.database.reading() as session:
        document = live_document(session, document_id)
        row = session.get(DocumentVersionRow, (document_id, version or document.version))
        if row is None or row.purged_at is not None:
            raise NotFoundError(f"version {version} of {document_id} is not kept; there is a newer one")
        found = as_version(row)
    try:
        data = store.artifacts.read(store.layout.text(document_id, found.version), found.sha256)
    except FileNotFoundError:
        if version is None and _newest(store, document_id) != found.version:
            # It was superseded and purged between the row and the file.
            return read_text(store, document_id, None)
        raise ArtifactError(
            f"the text of {document_id} is missing; delete the document and upload it again"
        ) from None
    except ArtifactError:
        raise ArtifactError(
            f"the text of {document_id} was altered; delete the document and upload it again"
        ) from None
    return data.decode()


def _newest(store: Store, document_id: str) -> int:
    with store.database.reading() as session:
        return live_document(session, document_id).version


def job_of(store: Store, document_id: str) -> Job:
    """The document's latest job."""
    with store.database.reading() as session:
        return as_job(latest_job(session, document_id))


def _answering(*conditions: ColumnElement[bool]) -> Select[KMRow]:
    return select(KMRow).where(KMRow.retired_at.is_(None), *conditions)


_KM_OF = _answering(KMRow.document_id == bindparam("document_id")).with_only_columns(*KMRow.__table__.c)


def km_of(store: Store, document_id: str) -> KM | None:
    """The KM that answers for the document."""
    with store.database.looking_up() as connection:
        row = connection.execute(_KM_OF, {"document_id": document_id}).one_or_none()
    return None if row is None else as_km(row, store.layout)


def all_kms_of(store: Store, document_id: str) -> list[KM]:
    """Every KM of the document that is not purged, oldest first."""
    query = select(KMRow).where(KMRow.document_id == document_id).order_by(KMRow.engine_id)
    with store.database.reading() as session:
        return [as_km(row, store.layout) for row in session.scalars(query)]


def of_job(store: Store, job_id: str) -> Document:
    """The document that a job trains, for its worker; NotFoundError once it is deleted."""
    with store.database.reading() as session:
        return as_document(live_document(session, find_job(session, job_id).document_id))


def visible_kms(store: Store, principal: Principal) -> list[KM]:
    """The KM that answers for each document that the principal may ask, newest first: every role may."""
    visible = (
        _answering(visible_to(principal))
        .join(DocumentRow, DocumentRow.id == KMRow.document_id)
        .where(DocumentRow.deleted_at.is_(None))
        .order_by(KMRow.engine_id.desc())
    )
    with store.database.reading() as session:
        return [as_km(row, store.layout) for row in session.scalars(visible)]


def kms_after(store: Store, engine_id: int) -> list[KM]:
    """The KMs that answer for live documents, of those with a higher engine id, oldest first."""
    live = (
        _answering(KMRow.engine_id > engine_id)
        .join(DocumentRow, DocumentRow.id == KMRow.document_id)
        .where(DocumentRow.deleted_at.is_(None))
        .order_by(KMRow.engine_id)
    )
    with store.database.reading() as session:
        return [as_km(row, store.layout) for row in session.scalars(live)]


def trainings(store: Store, document_ids: Sequence[str]) -> list[Training]:
    """These documents with their latest jobs and answering KMs, in this order, but for deleted ones."""
    latest = select(func.max(JobRow.sequence)).where(JobRow.document_id.in_(document_ids))
    jobs = select(JobRow).where(JobRow.sequence.in_(latest.group_by(JobRow.document_id)))
    live = select(DocumentRow).where(DocumentRow.id.in_(document_ids), DocumentRow.deleted_at.is_(None))
    with store.database.reading() as session:
        documents = {row.id: as_document(row) for row in session.scalars(live)}
        # The KMs are looked for after the jobs: a job seen as succeeded has its KM.
        by_document = {row.document_id: as_job(row) for row in session.scalars(jobs)}
        kms = {
            row.document_id: as_km(row, store.layout)
            for row in session.scalars(_answering(KMRow.document_id.in_(document_ids)))
        }
    return [
        Training(documents[document_id], by_document[document_id], kms.get(document_id))
        for document_id in document_ids
        if document_id in documents and document_id in by_document
    ]


def counts(store: Store) -> tuple[int, dict[JobState, int]]:
    """How many documents are kept, and how many jobs are in each state."""
    with store.database.reading() as session:
        documents = session.scalar(
            select(func.count()).select_from(DocumentRow).where(DocumentRow.deleted_at.is_(None))
        )
        jobs = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
    return documents or 0, {JobState(state): count for state, count in jobs}


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
    store: Store, principal: Principal, document_id: str, content: Content, recipe: dict[str, Any]
) -> tuple[Document, Job]:
    with store.transaction() as transaction:
        session = transaction.session
        user = session.get(UserRow, principal.user_id)
        if user is None or user.deleted_at is not None:
            raise NotFoundError(f"there is no user {principal.user_id}; use a valid API key")
        size = len(content.data)
        quota.check(session, store.settings, principal.user_id, documents=1, size=size, trainings=1)
        row = DocumentRow(
            id=document_id,
            owner_id=principal.user_id,
            title=content.title,
            sha256=content.sha256,
            size_bytes=size,
            created_at=now(),
            purged={},
            version=1,
        )
        session.add(row)
        session.flush()
        add_version(session, row)
        session.add(
            GrantRow(
                document_id=document_id, user_id=row.owner_id, role=Role.OWNER, created_at=row.created_at
            )
        )
        job = queue_job(transaction, row, recipe)
        audit.note(session, principal, "document.create", document_id)
        return as_document(row), job
