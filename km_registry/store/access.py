"""The facts that the access rule decides on, and the look-up of a document that asks it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from km_registry.access import may, strongest
from km_registry.errors import NotFoundError
from km_registry.store.rows import AnyRow, as_document, live_document
from km_registry.store.store import Store, now
from km_registry.tables import ApiKeyRow, DocumentRow, GrantRow, MembershipRow, UserRow
from km_registry.types import Action, Claim, Document, Grant, Principal, Role


def require(
    session: Session, principal: Principal, action: Action, document_id: str, *, lock: bool = False
) -> DocumentRow:
    """The document's row; NotFoundError when there is none or the principal may not do this with it."""
    grants = _held(session, [principal.user_id], [document_id])[principal.user_id, document_id]
    if not grants:
        # Nothing else is looked at, so that "not yours" takes as long as "not there".
        raise NotFoundError
    row = live_document(session, document_id, lock=lock)
    if not may(principal, action, as_document(row), grants):
        raise NotFoundError
    return row


def _of_user(user: str | BindParameter[str]) -> ColumnElement[bool]:
    """The grants of one user, also by being in a group. Their groups are looked up once, not for each grant:
    that is what a long list takes its time for."""
    groups = select(MembershipRow.group_id).where(MembershipRow.user_id == user)
    return or_(GrantRow.user_id == user, GrantRow.group_id.in_(groups))


_ALLOWED = (
    select(
        *DocumentRow.__table__.c,
        GrantRow.role,
        GrantRow.user_id,
        GrantRow.group_id,
        GrantRow.created_at.label("granted_at"),
    )
    .join(GrantRow, GrantRow.document_id == DocumentRow.id)
    .where(
        DocumentRow.id == bindparam("document_id"),
        DocumentRow.deleted_at.is_(None),
        _of_user(bindparam("user_id")),
    )
)


def allowed(store: Store, principal: Principal, action: Action, document_id: str) -> Document:
    """The same for whoever only looks: one statement, which finds nothing for "not yours" and "not there"."""
    with store.database.looking_up() as connection:
        rows = connection.execute(_ALLOWED, {"document_id": document_id, "user_id": principal.user_id}).all()
    if rows:
        document = as_document(rows[0])
        if may(principal, action, document, [_as_grant(row, document_id, row.granted_at) for row in rows]):
            return document
    raise NotFoundError


def visible_to(principal: Principal) -> ColumnElement[bool]:
    """The documents that the principal may read, as a condition: every role may."""
    return DocumentRow.id.in_(select(GrantRow.document_id).where(_of_user(principal.user_id)))


def roles(store: Store, principal: Principal, document_ids: Sequence[str]) -> dict[str, Role]:
    """The strongest role that the principal holds on each of these documents; none where there is none."""
    with store.database.reading() as session:
        held = _held(session, [principal.user_id], document_ids)
    return {
        document_id: role
        for (_, document_id), grants in held.items()
        if (role := strongest([grant.role for grant in grants])) is not None
    }


def standing(store: Store, claims: Collection[Claim]) -> set[Claim]:
    """Those of the claims that hold at this moment: the key is valid, and the rule says yes.

    A deletion waits for the answers that it finds in flight: their claims stand until it is complete.
    """
    users = {claim.principal.user_id for claim in claims}
    ids = {claim.document_id for claim in claims if claim.document_id is not None}
    with store.database.reading() as session:
        valid = {user: set[str | None]() for user in session.scalars(_existing(users))}
        for user_id, key_id in session.execute(_valid_keys(users)):
            valid[user_id].add(key_id)
        kept = select(DocumentRow).where(DocumentRow.id.in_(ids))
        documents = {row.id: as_document(row) for row in session.scalars(kept)}
        held = _held(session, users, ids)

    def stands(claim: Claim) -> bool:
        principal, document_id = claim.principal, claim.document_id
        keys = valid.get(principal.user_id)
        if keys is None or (claim.key_id is not None and claim.key_id not in keys):
            return False
        if document_id is None:
            return True
        document = documents.get(document_id)
        grants = held[principal.user_id, document_id]
        return document is not None and may(principal, claim.action, document, grants)

    return {claim for claim in claims if stands(claim)}


def key_works(at: BindParameter[datetime] | None = None) -> ColumnElement[bool]:
    """The keys that are neither revoked nor expired, now or at the named moment, as a condition."""
    unexpired = or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > (now() if at is None else at))
    return and_(ApiKeyRow.revoked_at.is_(None), unexpired)


def _existing(user_ids: Collection[str]) -> Select[str]:
    return select(UserRow.id).where(UserRow.id.in_(user_ids))


def _valid_keys(user_ids: Collection[str]) -> Select[str, str]:
    return select(ApiKeyRow.user_id, ApiKeyRow.id).where(ApiKeyRow.user_id.in_(user_ids), key_works())


def _held(
    session: Session, user_ids: Collection[str], document_ids: Collection[str]
) -> Mapping[tuple[str, str], list[Grant]]:
    """The grants on these documents that each of the users holds, also by being in a group."""
    query = (
        select(GrantRow, func.coalesce(GrantRow.user_id, MembershipRow.user_id))
        .outerjoin(MembershipRow, MembershipRow.group_id == GrantRow.group_id)
        .where(GrantRow.document_id.in_(document_ids), _holds(user_ids))
    )
    found: dict[tuple[str, str], list[Grant]] = defaultdict(list)
    for row, user_id in session.execute(query):
        found[user_id, row.document_id].append(_as_grant(row, row.document_id, row.created_at))
    return found


def _as_grant(row: GrantRow | AnyRow, document_id: str, granted_at: datetime) -> Grant:
    return Grant(document_id, row.user_id or row.group_id or "", "", Role(row.role), granted_at)


def _holds(user_ids: Collection[str]) -> ColumnElement[bool]:
    return or_(GrantRow.user_id.in_(user_ids), MembershipRow.user_id.in_(user_ids))
