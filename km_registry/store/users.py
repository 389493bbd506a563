"""Users."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from km_registry.access import may_administer
from km_registry.errors import ConflictError, NotAllowedError
from km_registry.ids import new_id
from km_registry.store import audit, keys
from km_registry.store.names import checked_name
from km_registry.store.principals import find_user
from km_registry.store.rows import as_user
from km_registry.store.store import Store, now
from km_registry.tables import UserRow
from km_registry.types import Principal, User


def ensure_admin(store: Store) -> str | None:
    """Create the first administrator where there is none; the key's secret, which is shown this once only."""
    with store.transaction() as transaction:
        session = transaction.session
        store.database.serialize(session)
        if session.scalar(select(UserRow.id).where(UserRow.is_admin).limit(1)) is not None:
            return None
        _, secret = _create(session, None, _free(session, "admin"), is_admin=True)
        return secret


def create_user(store: Store, by: Principal | None, name: str, *, is_admin: bool) -> tuple[User, str]:
    """A new user and the secret of their API key, which is kept nowhere. ConflictError: the name is taken."""
    name = checked_name(name)
    if by is not None:
        require_admin(by)
    try:
        with store.transaction() as transaction:
            return _create(transaction.session, by, name, is_admin=is_admin)
    except IntegrityError as error:
        raise ConflictError(f"name: there is a user {name} already. Choose another.", param="name") from error


def list_users(store: Store, by: Principal, *, after: str | None, limit: int) -> list[User]:
    """Users by name, those after the named one. NotAllowedError for who is no administrator."""
    require_admin(by)
    query = select(UserRow).where(UserRow.deleted_at.is_(None)).order_by(UserRow.name).limit(limit)
    if after is not None:
        # No name has a NUL, so nothing is lost by looking from before it; PostgreSQL takes none.
        query = query.where(UserRow.name > after.partition("\0")[0])
    with store.database.reading() as session:
        return [as_user(row) for row in session.scalars(query)]


def get(store: Store, user_id: str) -> User:
    """The user. InvalidValueError when there is none."""
    with store.database.reading() as session:
        return as_user(find_user(session, user_id))


def require_admin(principal: Principal) -> None:
    """NotAllowedError for who is no administrator."""
    if not may_administer(principal):
        raise NotAllowedError


def _create(session: Session, by: Principal | None, name: str, *, is_admin: bool) -> tuple[User, str]:
    row = UserRow(id=new_id("usr"), name=name, is_admin=is_admin, created_at=now())
    session.add(row)
    session.flush()
    audit.note(session, by, "user.create", row.id)
    _, secret = keys.add(session, by, row.id, "first", None)
    return as_user(row), secret


def _free(session: Session, name: str) -> str:
    """The name, with a number where it is taken: somebody who is no administrator may be called so."""
    taken = set(session.scalars(select(UserRow.name).where(UserRow.name.startswith(name))))
    numbers = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *numbers) if one not in taken)
