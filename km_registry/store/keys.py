"""API keys: 256 random bits, of which only the SHA-256 is kept; they expire, and can be revoked."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from km_registry.access import may_administer, may_manage_keys
from km_registry.errors import ConflictError, InvalidValueError, NotFoundError
from km_registry.ids import new_id, new_secret, secret_digest
from km_registry.store import audit
from km_registry.store.access import key_works
from km_registry.store.names import checked_name
from km_registry.store.principals import find_user
from km_registry.store.rows import as_key
from km_registry.store.store import Store, now
from km_registry.tables import ApiKeyRow, UserRow
from km_registry.types import ApiKey, Principal

#: How old a note of the last use may get before a request renews it.
_NOTED_FOR = timedelta(minutes=1)

_HOLDER = (
    select(ApiKeyRow.id, ApiKeyRow.user_id, ApiKeyRow.last_used_at, UserRow.is_admin)
    .join(UserRow, ApiKeyRow.user_id == UserRow.id)
    .where(key_works(bindparam("now")))
)
_BY_SECRET = _HOLDER.where(ApiKeyRow.sha256 == bindparam("which"))
_BY_ID = _HOLDER.where(ApiKeyRow.id == bindparam("which"))


def authenticate(store: Store, secret: str) -> Principal | None:
    """Whose secret this is; None also for that of a key which was revoked or has expired."""
    return _holder(store, _BY_SECRET, secret_digest(secret))


def holder(store: Store, key_id: str) -> Principal | None:
    """Whose key this is; None also for one which was revoked or has expired."""
    return _holder(store, _BY_ID, key_id)


def _holder(store: Store, query: Select[*tuple[Any, ...]], which: str) -> Principal | None:
    with store.database.looking_up() as connection:
        found = connection.execute(query, {"which": which, "now": now()}).one_or_none()
    if found is None:
        return None
    principal = Principal(found.user_id, is_admin=found.is_admin, key_id=found.id)
    used = found.last_used_at
    if used is None or now() - used > _NOTED_FOR:
        _note_use(store, key_id=principal.key_id)
    return principal


def create(
    store: Store, by: Principal, user: str | None, name: str, expires_at: datetime | None
) -> tuple[ApiKey, str]:
    """A new key for the user, named by id or name, or for `by`; and its secret, which is kept nowhere."""
    name = checked_name(name)
    if expires_at is not None and expires_at.tzinfo is None:
        expires_at = expires_at.replace(tzinfo=UTC)
    if expires_at is not None and expires_at <= now():
        raise InvalidValueError(
            "expires_at: it lies in the past. Give a later moment, or leave it out.", param="expires_at"
        )
    with store.transaction() as transaction:
        session = transaction.session
        user_id = by.user_id if user is None else _managed(session, by, user)
        ends = _end_of(session, by)
        if ends is not None and (expires_at is None or expires_at > ends):
            raise InvalidValueError(
                "expires_at: a key that expires makes none that outlives it. "
                f"Give a moment up to {ends.isoformat()}.",
                param="expires_at",
            )
        return add(session, by, user_id, name, expires_at)


def add(
    session: Session, by: Principal | None, user_id: str, name: str, expires_at: datetime | None
) -> tuple[ApiKey, str]:
    """Add a key to the user's in the caller's transaction; the key and its secret."""
    _refuse_duplicate(session, user_id, name)
    secret = new_secret()
    row = ApiKeyRow(
        id=new_id("key"),
        sha256=secret_digest(secret),
        user_id=user_id,
        name=name,
        created_at=now(),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    audit.note(session, by, "key.create", row.id, user_id)
    return as_key(row), secret


def list_keys(store: Store, by: Principal, user: str | None) -> list[ApiKey]:
    """The user's keys, oldest first, also those that work no more; without a user all that `by` manages."""
    query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
    with store.database.reading() as session:
        if user is not None:
            query = query.where(ApiKeyRow.user_id == _managed(session, by, user))
        elif not may_administer(by):
            query = query.where(ApiKeyRow.user_id == by.user_id)
        return [as_key(row) for row in session.scalars(query)]


def revoke(store: Store, by: Principal, key_id: str) -> ApiKey:
    """End the key, for good; from the next request on it is not known. Idempotent.

    NotFoundError: there is none, or it is not theirs to manage. ConflictError: the last administrator's last.
    """
    with audit.refusals(store, by, "key.revoke", key_id), store.transaction() as transaction:
        session = transaction.session
        row = session.get(ApiKeyRow, key_id, with_for_update=True)
        if row is None or not may_manage_keys(by, row.user_id):
            raise NotFoundError
        if row.revoked_at is None:
            _refuse_last_of_administrators(session, key_id)
            row.revoked_at = now()
            audit.note(session, by, "key.revoke", row.id, row.user_id)
        return as_key(row)


def _managed(session: Session, by: Principal, user: str) -> str:
    """The id of a user whose keys `by` manages; whether another one exists is no business of theirs."""
    if may_administer(by):
        return find_user(session, user).id
    own = session.get(UserRow, by.user_id)
    if own is None or user not in (own.id, own.name):
        raise InvalidValueError(
            "user: only administrators manage the keys of others. Leave it out for your own.",
            param="user",
        )
    return own.id


def _refuse_last_of_administrators(session: Session, key_id: str) -> None:
    """ConflictError when no administrator could call any more without this key."""
    keys = select(ApiKeyRow.id).join(UserRow, UserRow.id == ApiKeyRow.user_id)
    left = set(session.scalars(keys.where(UserRow.is_admin, key_works())))
    if left == {key_id}:
        raise ConflictError(
            "this is the last key of any administrator; make another one before you revoke it"
        )


def _refuse_duplicate(session: Session, user_id: str, name: str) -> None:
    named = select(func.count()).where(ApiKeyRow.user_id == user_id, ApiKeyRow.name == name, key_works())
    if session.scalar(named):
        raise ConflictError(f"name: this user has a key {name} already. Choose another.", param="name")


def _end_of(session: Session, by: Principal) -> datetime | None:
    """When the key that `by` calls with expires."""
    return session.scalar(select(ApiKeyRow.expires_at).where(ApiKeyRow.id == by.key_id))


def _note_use(store: Store, key_id: str | None) -> None:
    # A database that cannot be written to now must not lock everybody out.
    with contextlib.suppress(OperationalError), store.transaction() as transaction:
        transaction.session.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(last_used_at=now())
        )
