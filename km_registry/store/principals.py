"""Users and groups, found by what a client calls them: an id, or the exact name."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from km_registry.errors import InvalidValueError
from km_registry.tables import GroupRow, UserRow
from km_registry.tables_base import storable


def find_user(session: Session, wanted: str) -> UserRow:
    """The row of a user, by id or by name. InvalidValueError when there is none."""
    found = session.get(UserRow, wanted)
    if found is None and storable(wanted):
        found = session.scalars(select(UserRow).where(UserRow.name == wanted)).one_or_none()
    if found is None or found.deleted_at is not None:
        raise InvalidValueError(
            f"user: there is no user {wanted[:200]!r}. Give the id, or the exact name.",
            param="user",
        )
    return found


def find_group(session: Session, wanted: str) -> GroupRow:
    """The row of a group, by id or by name. InvalidValueError when there is none."""
    found = session.get(GroupRow, wanted)
    if found is None and storable(wanted):
        found = session.scalars(select(GroupRow).where(GroupRow.name == wanted)).one_or_none()
    if found is None:
        raise InvalidValueError(
            f"group: there is no group {wanted[:200]!r}. Give the id, or the exact name.",
            param="group",
        )
    return found
