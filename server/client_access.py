"""The calls of the HTTP API that are about who may do what: sharing, users, groups, keys, the audit log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class AccessCalls(ABC):
    """Calls that a client can make once it can send a request."""

    @abstractmethod
    def _json(self, method: str, path: str, /, **options: Any) -> dict[str, Any]:
        """The body of the answer; empty where it has none."""

    def me(self) -> dict[str, Any]:
        """Who you are: {user, groups, key_id}."""
        return self._json("GET", "/users/me")

    def grants(self, document_id: str) -> list[dict[str, Any]]:
        """Who holds which role on the document."""
        found: list[dict[str, Any]] = self._json("GET", f"/documents/{document_id}/grants")["grants"]
        return found

    def share(
        self, document_id: str, *, user: str | None = None, group: str | None = None, role: str = "reader"
    ) -> dict[str, Any]:
        """Give a user or a group a role on the document; the grant."""
        wanted = {"user": user} if group is None else {"group": group}
        return self._json("POST", f"/documents/{document_id}/grants", json=wanted | {"role": role})

    def unshare(self, document_id: str, principal_id: str) -> None:
        """Take the role from a user or a group, named by id."""
        self._json("DELETE", f"/documents/{document_id}/grants/{principal_id}")

    def users(self) -> list[dict[str, Any]]:
        """Every user, by name."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self._json("GET", "/users", params={} if after is None else {"after": after})
            found += page["users"]
            after = page["next_after"]
            if after is None:
                return found

    def create_user(self, name: str, *, is_admin: bool = False) -> dict[str, Any]:
        """A new user with their first key: {user, api_key}."""
        return self._json("POST", "/users", json={"name": name, "is_admin": is_admin})

    def delete_user(self, user_id: str) -> dict[str, Any]:
        """Delete a user with every document that they uploaded; the receipt."""
        return self._json("DELETE", f"/users/{user_id}")

    def groups(self) -> list[dict[str, Any]]:
        """The groups that you see, by name."""
        found: list[dict[str, Any]] = self._json("GET", "/groups")["groups"]
        return found

    def create_group(self, name: str) -> dict[str, Any]:
        """A new group."""
        return self._json("POST", "/groups", json={"name": name})

    def delete_group(self, group_id: str) -> None:
        """Remove a group."""
        self._json("DELETE", f"/groups/{group_id}")

    def members(self, group_id: str) -> list[dict[str, Any]]:
        """A group's members, by name."""
        found: list[dict[str, Any]] = self._json("GET", f"/groups/{group_id}/members")["members"]
        return found

    def add_member(self, group_id: str, user: str) -> dict[str, Any]:
        """Put a user, named by id or name, into a group."""
        return self._json("POST", f"/groups/{group_id}/members", json={"user": user})

    def remove_member(self, group_id: str, user_id: str) -> None:
        """Take a user out of a group."""
        self._json("DELETE", f"/groups/{group_id}/members/{user_id}")

    def keys(self, user: str | None = None) -> list[dict[str, Any]]:
        """Your keys, or a user's, oldest first."""
        params = {} if user is None else {"user": user}
        found: list[dict[str, Any]] = self._json("GET", "/keys", params=params)["keys"]
        return found

    def create_key(
        self, name: str, *, user: str | None = None, expires_at: str | None = None
    ) -> dict[str, Any]:
        """A new key with its secret: {key, api_key}. `expires_at` is an ISO 8601 moment."""
        body = {"name": name, "user": user, "expires_at": expires_at}
        return self._json("POST", "/keys", json=body)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """End a key."""
        return self._json("DELETE", f"/keys/{key_id}")

    def audit(
        self,
        *,
        actor: str | None = None,
        target: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> dict[str, Any]:
        """Who did or tried what, newest first: {entries, next_before}."""
        wanted = {"actor": actor, "target": target, "before": before, "limit": limit}
        return self._json(
            "GET", "/audit", params={key: one for key, one in wanted.items() if one is not None}
        )
