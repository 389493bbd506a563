"""Sharing: grants of roles on a document, given and taken by its owners."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from km_registry.errors import ConflictError, InvalidValueError, NotFoundError
from km_registry.store import audit
from km_registry.store.access import require
from km_registry.store.principals import find_group, find_user
from km_registry.store.store import Store, now
from km_registry.tables import DocumentRow, GrantRow, GroupRow, UserRow
from km_registry.types import Action, Grant, Principal, Role


def grants(store: Store, principal: Principal, document_id: str) -> list[Grant]:
    """Who holds which role on the document, in the order in which they were given."""
    query = (
        select(GrantRow, UserRow.name, GroupRow.name)
        .outerjoin(UserRow, UserRow.id == GrantRow.user_id)
        .outerjoin(GroupRow, GroupRow.id == GrantRow.group_id)
        .where(GrantRow.document_id == document_id)
        .order_by(GrantRow.id)
    )
    with audit.refusals(store, principal, "document.share", document_id), store.database.reading() as session:
        require(session, principal, Action.SHARE, document_id)
        return [_as_grant(row, user or group) for row, user, group in session.execute(query)]


def share(
    store: Store, principal: Principal, document_id: str, *, user: str | None, group: str | None, role: Role
) -> tuple[Grant, bool]:
    """Give a user or a group, named by id or name, this role instead of any other; whether it is new."""
    with audit.refusals(store, principal, "document.share", document_id), store.transaction() as transaction:
        session = transaction.session
        # Held, so that of two who share at once the second finds the first one's grant.
        document = require(session, principal, Action.SHARE, document_id, lock=True)
        holder = _holder(session, user, group)
        if holder.id == principal.user_id:
            raise InvalidValueError(
                "user: that is yourself, who own the document already. Share it with somebody else.",
                param="user",
            )
        row = session.scalars(_of(document_id, holder.id)).one_or_none()
        created = row is None
        if row is None:
            field = "user_id" if isinstance(holder, UserRow) else "group_id"
            row = GrantRow(document_id=document_id, role=role, created_at=now(), **{field: holder.id})
            session.add(row)
        elif role is not Role.OWNER:
            _refuse_the_one_who_answers(document, holder.id)
        row.role = role
        session.flush()
        audit.note(session, principal, f"grant.{role}", document_id, holder.id)
        return _as_grant(row, holder.name), created


def unshare(store: Store, principal: Principal, document_id: str, principal_id: str) -> None:
    """Take the role from a user or a group, named by id.

    NotFoundError: it holds none. ConflictError: the one who uploaded the document stays its owner.
    """
    with audit.refusals(store, principal, "document.share", document_id), store.transaction() as transaction:
        session = transaction.session
        document = require(session, principal, Action.SHARE, document_id, lock=True)
        _refuse_the_one_who_answers(document, principal_id)
        row = session.scalars(_of(document_id, principal_id)).one_or_none()
        if row is None:
            raise NotFoundError
        session.delete(row)
        audit.note(session, principal, "grant.remove", document_id, principal_id)


def _holder(session: Session, user: str | None, group: str | None) -> UserRow | GroupRow:
    if user is not None and group is None:
        return find_user(session, user)
    if group is not None and user is None:
        return find_group(session, group)
    raise InvalidValueError("user: give either a user or a group to share with.", param="user")


def _refuse_the_one_who_answers(document: DocumentRow, principal_id: str) -> None:
    # Their quota pays for it, so there is always one owner.
    if document.owner_id == principal_id:
        raise ConflictError(
            f"{principal_id} uploaded the document and stays its owner; delete the document instead",
            param="user",
        )


def _of(document_id: str, principal_id: str) -> Select[GrantRow]:
    held = (GrantRow.user_id == principal_id) | (GrantRow.group_id == principal_id)
    return select(GrantRow).where(GrantRow.document_id == document_id, held)


def _as_grant(row: GrantRow, name: str) -> Grant:
    principal_id = row.user_id or row.group_id
    assert principal_id is not None, "a grant has one of them"
    return Grant(row.document_id, principal_id, name, Role(row.role), row.created_at)
