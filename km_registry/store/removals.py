"""Removal of less than a document, or of more: a KM alone, a former version, a user with all they own.

Asked for in one transaction, from which on it is gone for everybody; then evicted and purged, by the steps
that replace and delete documents; then completed, which makes its row the receipt. A restart goes on with
`pending`.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from km_registry.errors import ConflictError, NotFoundError
from km_registry.ids import new_id
from km_registry.store import audit, handover
from km_registry.store.access import require
from km_registry.store.jobs import cancel_unfinished, purge_work
from km_registry.store.rows import as_removal
from km_registry.store.store import Store, Transaction, now
from km_registry.store.users import require_admin
from km_registry.tables import (
    ApiKeyRow,
    DocumentRow,
    DocumentVersionRow,
    EventRow,
    EvictionRow,
    GrantRow,
    JobRow,
    KMRow,
    MembershipRow,
    ReceiptRow,
    RemovalRow,
    UserRow,
)
from km_registry.types import Action, JobState, Principal, Removal, RemovalKind


def remove_km(store: Store, principal: Principal, document_id: str) -> Removal:
    """Take the document's KM away, and cancel the training of another. ConflictError when it has neither."""
    with (
        audit.refusals(store, principal, "km.delete", document_id),
        store.transaction() as transaction,
    ):
        session = transaction.session
        document = require(session, principal, Action.DELETE, document_id, lock=True)
        cancelled = cancel_unfinished(transaction, document_id)
        kms = _retire(transaction, document_id, KMRow.retired_at.is_(None))
        if not kms and not cancelled:
            raise ConflictError(
                f"{document_id} has no KM, and none is being trained; there is nothing to delete"
            )
        audit.note(session, principal, "km.delete", document_id)
        return _asked(session, principal, RemovalKind.KM, document, kms=kms)


def remove_version(store: Store, principal: Principal, document_id: str, version: int) -> Removal:
    """Take a former version away: its KM if that answers still, and what is known of its text.

    ConflictError for the newest one, NotFoundError for one that is not there.
    """
    with (
        audit.refusals(store, principal, "version.delete", document_id),
        store.transaction() as transaction,
    ):
        session = transaction.session
        document = require(session, principal, Action.DELETE, document_id, lock=True)
        if version == document.version:
            raise ConflictError(
                f"{version} is the newest version of {document_id}; give it a newer one first, or delete the "
                "document"
            )
        if session.get(DocumentVersionRow, (document_id, version)) is None:
            raise NotFoundError
        kms = _retire(transaction, document_id, KMRow.version == version)
        audit.note(session, principal, "version.delete", document_id)
        return _asked(session, principal, RemovalKind.VERSION, document, version=version, kms=kms)


def remove_user(store: Store, by: Principal, user_id: str) -> Removal:
    """Take a user away with every document that they uploaded: their keys, groups and grants at once.

    NotAllowedError for who is no administrator, NotFoundError when there is no such user, ConflictError for
    the last administrator.
    """
    require_admin(by)
    with audit.refusals(store, by, "user.delete", user_id), store.transaction() as transaction:
        session = transaction.session
        store.database.serialize(session)
        user = session.get(UserRow, user_id, with_for_update={"key_share": True})
        if user is None or user.deleted_at is not None:
            raise NotFoundError
        admins = select(func.count()).select_from(UserRow).where(UserRow.is_admin)
        if user.is_admin and session.scalar(admins) == 1:
            raise ConflictError("this is the last administrator; make another one first")
        # The name is free again, and tells nothing more.
        user.deleted_at, user.name, user.is_admin = now(), user.id, False
        for table in (ApiKeyRow, GrantRow, MembershipRow):
            session.execute(delete(table).where(table.user_id == user_id))
        _tombstone_all(transaction, by, user_id)
        audit.note(session, by, "user.delete", user_id)
        row = RemovalRow(
            id=new_id("rcp"),
            kind=RemovalKind.USER,
            owner_id=user_id,
            requested_by=by.user_id,
            requested_at=now(),
            km_ids=[],
            purged={},
        )
        session.add(row)
        session.flush()
        return as_removal(row)


def _tombstone_all(transaction: Transaction, by: Principal, user_id: str) -> None:
    live = select(DocumentRow).where(DocumentRow.owner_id == user_id, DocumentRow.deleted_at.is_(None))
    for document in transaction.session.scalars(live.with_for_update(key_share=True)).all():
        document.deleted_at, document.deleted_by = now(), by.user_id
        cancel_unfinished(transaction, document.id)
        audit.note(transaction.session, by, "document.delete", document.id)


def pending(store: Store) -> list[Removal]:
    """What was asked for and is not completed, the longest waiting first."""
    query = select(RemovalRow).where(RemovalRow.completed_at.is_(None)).order_by(RemovalRow.sequence)
    with store.database.reading() as session:
        return [as_removal(row) for row in session.scalars(query)]


def receipt_of(store: Store, principal: Principal, removal_id: str) -> Removal:
    """A completed removal, for who asked for it and whose it was."""
    with store.database.reading() as session:
        row = session.scalars(select(RemovalRow).where(RemovalRow.id == removal_id)).one_or_none()
        if row is None or row.completed_at is None:
            raise NotFoundError
        if principal.user_id not in (row.requested_by, row.owner_id):
            raise NotFoundError
        return as_removal(row)


def complete(store: Store, removal_id: str) -> Removal:
    """Forget what is left in the records and make the row a receipt. Idempotent.

    ConflictError while something of it is still there: a KM, a worker that holds its files, a document.
    StoreUnavailableError while the shared store is away.
    """
    _withdraw(store, removal_id)
    with store.transaction() as transaction:
        session = transaction.session
        query = select(RemovalRow).where(RemovalRow.id == removal_id).with_for_update()
        row = session.scalars(query).one_or_none()
        if row is None:
            raise NotFoundError
        if row.completed_at is None:
            row.purged = row.purged | _completed(store, session, row) | _who_acknowledged(session, row)
            row.completed_at = now()
        return as_removal(row)


def _who_acknowledged(session: Session, row: RemovalRow) -> dict[str, list[str]]:
    """The gateways that let go of its KMs, where there are several."""
    of_kms = select(EvictionRow.gateway_id).where(EvictionRow.subject.in_(row.km_ids)).distinct()
    gateways = session.scalars(of_kms.order_by(EvictionRow.gateway_id)).all()
    return {"engine_gateways": list(gateways)} if gateways else {}


def _withdraw(store: Store, removal_id: str) -> None:
    """Remove what the finished trainings concerned had handed over; before the transaction, which no store
    should hold up."""
    with store.database.reading() as session:
        row = session.scalars(select(RemovalRow).where(RemovalRow.id == removal_id)).one_or_none()
        if row is None or row.completed_at is not None or row.document_id is None:
            return
        of = JobRow.document_id == row.document_id
        if row.version is not None:
            of &= JobRow.version == row.version
        document_id = row.document_id
        ended = [state for state in JobState if state.finished]
        jobs = session.scalars(select(JobRow.id).where(of, JobRow.state.in_(ended))).all()
    for job_id in jobs:
        handover.withdraw(store, document_id, job_id)


def _completed(store: Store, session: Session, row: RemovalRow) -> dict[str, int]:
    match RemovalKind(row.kind):
        case RemovalKind.KM:
            _refuse_while_there(session, row)
            return _forget_work(store, session, JobRow.document_id == row.document_id)
        case RemovalKind.VERSION:
            _refuse_while_there(session, row)
            return _forget_version(store, session, row)
        case RemovalKind.USER:
            return _forget_user(session, row)


def tombstone_late(store: Store, removal_id: str) -> None:
    """Tombstone what a removed user's last request uploaded while they were being removed."""
    with store.transaction() as transaction:
        query = select(RemovalRow).where(RemovalRow.id == removal_id)
        row = transaction.session.scalars(query).one()
        by = Principal(row.requested_by)
        _tombstone_all(transaction, by, row.owner_id)


def _refuse_while_there(session: Session, row: RemovalRow) -> None:
    if session.scalar(select(KMRow.id).where(KMRow.id.in_(row.km_ids)).limit(1)) is not None:
        raise ConflictError(f"a KM of {row.document_id} is not purged yet; purge what is superseded first")


def _forget_work(store: Store, session: Session, of: ColumnElement[bool]) -> dict[str, int]:
    """Purge what finished trainings left; ConflictError while a worker holds it."""
    ended = [state for state in JobState if state.finished]
    jobs = session.scalars(select(JobRow).where(of, JobRow.state.in_(ended)).with_for_update()).all()
    if any(job.held_by for job in jobs):
        raise ConflictError("a worker still holds the training's files; stop it first")
    for job in jobs:
        purge_work(store, job.id)
    return {"trainings": len(jobs)}


def _forget_version(store: Store, session: Session, row: RemovalRow) -> dict[str, int]:
    of_version = (JobRow.document_id == row.document_id) & (JobRow.version == row.version)
    version = session.get(DocumentVersionRow, (row.document_id, row.version))
    if version is None:
        return {}  # its document was deleted meanwhile
    if version.purged_at is None:
        raise ConflictError(
            f"the text of version {row.version} is not purged; purge what is superseded first"
        )
    removed = _forget_work(store, session, of_version)
    jobs = select(JobRow.id).where(of_version)
    events = session.scalars(delete(EventRow).where(EventRow.job_id.in_(jobs)).returning(EventRow.id)).all()
    session.execute(delete(JobRow).where(of_version))
    session.delete(version)
    return removed | {"events": len(events), "versions": 1}


def _forget_user(session: Session, row: RemovalRow) -> dict[str, int]:
    left = select(DocumentRow.id).where(DocumentRow.owner_id == row.owner_id).limit(1)
    if session.scalar(left) is not None:
        raise ConflictError("documents of the user are not deleted yet; complete their deletions first")
    receipts = select(func.count()).select_from(ReceiptRow).where(ReceiptRow.owner_id == row.owner_id)
    return {"documents": session.scalar(receipts) or 0, "users": 1}


def _retire(transaction: Transaction, document_id: str, which: ColumnElement[bool]) -> list[str]:
    """Have these KMs answer no more, and their jobs count as undone; their ids."""
    session = transaction.session
    kms = session.scalars(select(KMRow).where(KMRow.document_id == document_id, which)).all()
    for km in kms:
        if km.retired_at is None:
            km.retired_at = now()
            job = session.scalars(select(JobRow).where(JobRow.id == km.job_id).with_for_update()).one()
            # So that it may be trained again with the same recipe.
            job.state = JobState.CANCELLED
            transaction.emit(document_id, job.id, "cancelled", {"km_id": km.id})
    return [km.id for km in kms]


def _asked(
    session: Session,
    principal: Principal,
    kind: RemovalKind,
    document: DocumentRow,
    *,
    kms: list[str],
    version: int | None = None,
) -> Removal:
    row = RemovalRow(
        id=new_id("rcp"),
        kind=kind,
        document_id=document.id,
        version=version,
        owner_id=document.owner_id,
        requested_by=principal.user_id,
        requested_at=now(),
        km_ids=kms,
        purged={"kms": len(kms)},
    )
    session.add(row)
    session.flush()
    return as_removal(row)
