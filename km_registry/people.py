"""Who may do what, as a facade over the records: users, groups, keys, grants and the audit log.

Methods take the principal who asks (`by`) and hold to the rules in `access`. NotAllowedError: it is an
administrator's business. NotFoundError: there is none, or it is not theirs. InvalidValueError and
ConflictError name the field to change in `param`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from km_registry.store import access, audit, groups, keys, sharing, users
from km_registry.store.store import Store
from km_registry.types import ApiKey, AuditEntry, Claim, Grant, Group, Principal, Role, User


class People:
    """Users, groups, keys, grants and the audit log of one registry. Synchronous and thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Users

    def create_user(self, by: Principal, name: str, *, is_admin: bool = False) -> tuple[User, str]:
        """A new user and the secret of their first key, which is shown this once."""
        return users.create_user(self._store, by, name, is_admin=is_admin)

    def users(self, by: Principal, *, after: str | None = None, limit: int = 1000) -> list[User]:
        """Users by name, those after the named one."""
        return users.list_users(self._store, by, after=after, limit=limit)

    def user(self, user_id: str) -> User:
        """The user; InvalidValueError when there is none."""
        return users.get(self._store, user_id)

    # Groups

    def create_group(self, by: Principal, name: str) -> Group:
        """A new group without members."""
        return groups.create(self._store, by, name)

    def groups(self, by: Principal) -> list[Group]:
        """Groups by name: all of them for an administrator, else those that `by` is in."""
        return groups.list_groups(self._store, by)

    def members(self, by: Principal, group_id: str) -> list[User]:
        """The group's members by name, for an administrator or a member."""
        return groups.members(self._store, by, group_id)

    def delete_group(self, by: Principal, group_id: str) -> None:
        """Remove the group, with all that was granted to it."""
        groups.delete(self._store, by, group_id)

    def add_member(self, by: Principal, group_id: str, user: str) -> tuple[User, bool]:
        """Put a user, named by id or name, into the group; the user, and whether they are new in it."""
        return groups.add_member(self._store, by, group_id, user)

    def remove_member(self, by: Principal, group_id: str, user_id: str) -> None:
        """Take the user out of the group."""
        groups.remove_member(self._store, by, group_id, user_id)

    # Keys

    def create_key(
        self, by: Principal, name: str, *, user: str | None = None, expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """A new key for the user, by id or name, or for `by`; and its secret, shown this once."""
        return keys.create(self._store, by, user, name, expires_at)

    def keys(self, by: Principal, *, user: str | None = None) -> list[ApiKey]:
        """Keys of the user, named by id or name, oldest first; without a user all that `by` manages."""
        return keys.list_keys(self._store, by, user)

    def revoke_key(self, by: Principal, key_id: str) -> ApiKey:
        """End the key for good, from the next request on. Idempotent."""
        return keys.revoke(self._store, by, key_id)

    def holder(self, key_id: str) -> Principal | None:
        """The principal behind a key that works, by its id: for a session that was begun with its secret."""
        return keys.holder(self._store, key_id)

    # Grants

    def grants(self, by: Principal, document_id: str) -> list[Grant]:
        """Who holds which role on the document, for its owners."""
        return sharing.grants(self._store, by, document_id)

    def share(
        self,
        by: Principal,
        document_id: str,
        *,
        user: str | None = None,
        group: str | None = None,
        role: Role = Role.READER,
    ) -> tuple[Grant, bool]:
        """Give a user or a group, named by id or name, this role instead of any other; whether it is new."""
        return sharing.share(self._store, by, document_id, user=user, group=group, role=role)

    def unshare(self, by: Principal, document_id: str, principal_id: str) -> None:
        """Take the role from a user or a group, named by id."""
        sharing.unshare(self._store, by, document_id, principal_id)

    def roles(self, by: Principal, document_ids: Sequence[str]) -> dict[str, Role]:
        """The strongest role that `by` holds on each of these documents; nothing where there is none."""
        return access.roles(self._store, by, document_ids)

    def standing(self, claims: Collection[Claim]) -> set[Claim]:
        """Those of the claims that hold at this moment."""
        return access.standing(self._store, claims)

    # The audit log

    def audit(
        self,
        by: Principal,
        *,
        actor_id: str | None = None,
        target_id: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """Who did or tried what, newest first: all of it for an administrator, else what concerns `by`."""
        return audit.entries(
            self._store, by, actor_id=actor_id, target_id=target_id, before=before, limit=limit
        )

    def note_asked(self, claims: Sequence[Claim]) -> None:
        """Note in the audit log that these claims' documents were asked. For before an answer is given."""
        audit.note_asked(self._store, claims)

    def prune_audit(self, before: datetime) -> int:
        """Forget entries older than that; how many there were."""
        return audit.prune(self._store, before)
