"""Users and their API keys."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from km_registry.ids import new_id, new_secret, secret_digest
from km_registry.store.rows import as_user
from km_registry.store.store import Store, now
from km_registry.tables import ApiKeyRow, UserRow
from km_registry.types import Principal, User


def ensure_admin(store: Store) -> str | None:
    """Create the first administrator where there is none; the key's secret, which is shown this once only."""
    with store.transaction() as transaction:
        session = transaction.session
        store.database.serialize(session)
        if session.scalar(select(UserRow.id).where(UserRow.is_admin).limit(1)) is not None:
            return None
        _, secret = _create(session, "admin", is_admin=True)
        return secret


def create_user(store: Store, name: str, *, is_admin: bool) -> tuple[User, str]:
    """A new user and the secret of their API key, which is kept nowhere."""
    with store.transaction() as transaction:
        return _create(transaction.session, name, is_admin=is_admin)


def authenticate(store: Store, secret: str) -> Principal | None:
    """Whose secret this is."""
    query = (
        select(UserRow)
        .join(ApiKeyRow, ApiKeyRow.user_id == UserRow.id)
        .where(ApiKeyRow.sha256 == secret_digest(secret))
    )
    with store.database.reading() as session:
        row = session.scalars(query).one_or_none()
        return None if row is None else Principal(row.id, is_admin=row.is_admin)


def _create(session: Session, name: str, *, is_admin: bool) -> tuple[User, str]:
    row = UserRow(id=new_id("usr"), name=name, is_admin=is_admin, created_at=now())
    secret = new_secret()
    session.add(row)
    session.flush()
    session.add(ApiKeyRow(sha256=secret_digest(secret), user_id=row.id, created_at=row.created_at))
    return as_user(row), secret
