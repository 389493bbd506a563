"""Groups of users. Administrators manage them; everybody sees those that they are in."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from km_registry.access import may_administer
from km_registry.errors import ConflictError, NotFoundError
from km_registry.ids import new_id
from km_registry.store import audit
from km_registry.store.names import checked_name
from km_registry.store.principals import find_user
from km_registry.store.rows import as_group, as_user
from km_registry.store.store import Store, now
from km_registry.store.users import require_admin
from km_registry.tables import GroupRow, MembershipRow, UserRow
from km_registry.types import Group, Principal, User


def create(store: Store, by: Principal, name: str) -> Group:
    """A new group without members. ConflictError: the name is taken."""
    require_admin(by)
    name = checked_name(name)
    try:
        with store.transaction() as transaction:
            row = GroupRow(id=new_id("grp"), name=name, created_at=now())
            transaction.session.add(row)
            transaction.session.flush()
            audit.note(transaction.session, by, "group.create", row.id)
            return as_group(row)
    except IntegrityError as error:
        raise ConflictError(
            f"name: there is a group {name} already. Choose another.", param="name"
        ) from error


def list_groups(store: Store, by: Principal) -> list[Group]:
    """Groups by name: all of them for an administrator, else those that `by` is in."""
    query = select(GroupRow).order_by(GroupRow.name)
    if not may_administer(by):
        mine = select(MembershipRow.group_id).where(MembershipRow.user_id == by.user_id)
        query = query.where(GroupRow.id.in_(mine))
    with store.database.reading() as session:
        return [as_group(row) for row in session.scalars(query)]


def members(store: Store, by: Principal, group_id: str) -> list[User]:
    """The group's members by name, for an administrator or a member; NotFoundError for anybody else."""
    query = (
        select(UserRow)
        .join(MembershipRow, MembershipRow.user_id == UserRow.id)
        .where(MembershipRow.group_id == group_id)
        .order_by(UserRow.name)
    )
    with store.database.reading() as session:
        found = [as_user(row) for row in session.scalars(query)]
        there = session.get(GroupRow, group_id) is not None
    if not there or not (may_administer(by) or by.user_id in {user.id for user in found}):
        raise NotFoundError
    return found


def delete(store: Store, by: Principal, group_id: str) -> None:
    """Remove the group, with all that was granted to it. NotFoundError: there is none."""
    require_admin(by)
    with audit.refusals(store, by, "group.delete", group_id), store.transaction() as transaction:
        transaction.session.delete(_group(transaction.session, group_id))
        audit.note(transaction.session, by, "group.delete", group_id)


def add_member(store: Store, by: Principal, group_id: str, user: str) -> tuple[User, bool]:
    """Put a user, named by id or name, into the group; the user, and whether they are new in it."""
    require_admin(by)
    with audit.refusals(store, by, "member.add", group_id), store.transaction() as transaction:
        session = transaction.session
        _group(session, group_id)
        row = find_user(session, user)
        if session.get(MembershipRow, (group_id, row.id)) is not None:
            return as_user(row), False
        session.add(MembershipRow(group_id=group_id, user_id=row.id, created_at=now()))
        audit.note(session, by, "member.add", group_id, row.id)
        return as_user(row), True


def remove_member(store: Store, by: Principal, group_id: str, user_id: str) -> None:
    """Take the user out of the group. NotFoundError: there is no such group, or they are not in it."""
    require_admin(by)
    with audit.refusals(store, by, "member.remove", group_id), store.transaction() as transaction:
        session = transaction.session
        row = session.get(MembershipRow, (group_id, user_id))
        if row is None:
            raise NotFoundError
        session.delete(row)
        audit.note(session, by, "member.remove", group_id, user_id)


def _group(session: Session, group_id: str) -> GroupRow:
    # Held, so that a member is not added to a group that is being removed.
    row = session.get(GroupRow, group_id, with_for_update=True)
    if row is None:
        raise NotFoundError
    return row
