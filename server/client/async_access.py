"""`server.client.access`, awaited."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from server.client import calls
from server.client.calls import Call, T
from server.client.types import AuditPage, Grant, Group, Key, KeyCreated, Me, Removal, User, UserCreated


class AsyncAccessCalls(ABC):
    """Calls that a client can make once it can send a request."""

    @abstractmethod
    async def _do(self, call: Call[T]) -> T:
        """What is wanted of the answer to the call."""

    async def me(self) -> Me:
        """Who you are."""
        return await self._do(calls.get("/users/me"))

    async def grants(self, document_id: str) -> list[Grant]:
        """Who holds which role on the document."""
        return await self._do(calls.get(f"/documents/{document_id}/grants", calls.picking("grants")))

    async def share(
        self, document_id: str, *, user: str | None = None, group: str | None = None, role: str = "reader"
    ) -> Grant:
        """Give a user or a group a role on the document."""
        return await self._do(calls.share(document_id, user, group, role))

    async def unshare(self, document_id: str, principal_id: str) -> None:
        """Take the role from a user or a group, named by id."""
        await self._do(calls.delete(f"/documents/{document_id}/grants/{principal_id}"))

    async def users(self) -> list[User]:
        """Every user, by name."""
        found: list[User] = []
        after: str | None = None
        while True:
            page: dict[str, Any] = await self._do(calls.get("/users", after=after))
            found += page["users"]
            after = page["next_after"]
            if after is None:
                return found

    async def create_user(self, name: str, *, is_admin: bool = False) -> UserCreated:
        """A new user with their first key."""
        return await self._do(calls.post("/users", name=name, is_admin=is_admin))

    async def delete_user(self, user_id: str) -> Removal:
        """Delete a user with every document that they uploaded."""
        return await self._do(calls.delete(f"/users/{user_id}"))

    async def groups(self) -> list[Group]:
        """The groups that you see, by name."""
        return await self._do(calls.get("/groups", calls.picking("groups")))

    async def create_group(self, name: str) -> Group:
        """A new group."""
        return await self._do(calls.post("/groups", name=name))

    async def delete_group(self, group_id: str) -> None:
        """Remove a group."""
        await self._do(calls.delete(f"/groups/{group_id}"))

    async def members(self, group_id: str) -> list[User]:
        """A group's members, by name."""
        return await self._do(calls.get(f"/groups/{group_id}/members", calls.picking("members")))

    async def add_member(self, group_id: str, user: str) -> User:
        """Put a user, named by id or name, into a group."""
        return await self._do(calls.post(f"/groups/{group_id}/members", user=user))

    async def remove_member(self, group_id: str, user_id: str) -> None:
        """Take a user out of a group."""
        await self._do(calls.delete(f"/groups/{group_id}/members/{user_id}"))

    async def keys(self, user: str | None = None) -> list[Key]:
        """Your keys, or a user's, oldest first."""
        return await self._do(calls.get("/keys", calls.picking("keys"), user=user))

    async def create_key(
        self, name: str, *, user: str | None = None, expires_at: str | None = None
    ) -> KeyCreated:
        """A new key with its secret. `expires_at` is an ISO 8601 moment."""
        return await self._do(calls.post("/keys", name=name, user=user, expires_at=expires_at))

    async def revoke_key(self, key_id: str) -> Key:
        """End a key."""
        return await self._do(calls.delete(f"/keys/{key_id}"))

    async def audit(
        self,
        *,
        actor: str | None = None,
        target: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> AuditPage:
        """Who did or tried what, newest first."""
        return await self._do(calls.get("/audit", actor=actor, target=target, before=before, limit=limit))
