"""Removal of less than a document, or of more, as a facade over the records."""

from __future__ import annotations

from km_registry.store import removals
from km_registry.store.store import Store
from km_registry.types import Principal, Removal


class Removals:
    """A KM alone, a former version, a user with all they own: asked for, then completed.

    Synchronous and thread-safe. What is asked for is gone for everybody at once; until it is completed, and
    after a restart, it is `pending`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def remove_km(self, by: Principal, document_id: str) -> Removal:
        """Take the document's KM away, and cancel its training. ConflictError when it has neither."""
        return removals.remove_km(self._store, by, document_id)

    def remove_version(self, by: Principal, document_id: str, version: int) -> Removal:
        """Take a former version away. ConflictError for the newest, NotFoundError when it is not there."""
        return removals.remove_version(self._store, by, document_id, version)

    def remove_user(self, by: Principal, user_id: str) -> Removal:
        """Take a user away with all they own. NotAllowedError, NotFoundError; ConflictError: the last
        administrator."""
        return removals.remove_user(self._store, by, user_id)

    def pending(self) -> list[Removal]:
        """What is not completed, the longest waiting first."""
        return removals.pending(self._store)

    def tombstone_late(self, removal_id: str) -> None:
        """Tombstone what the removed user's last request uploaded meanwhile."""
        removals.tombstone_late(self._store, removal_id)

    def complete(self, removal_id: str) -> Removal:
        """Forget what is left in the records; the receipt. ConflictError while files of it are left."""
        return removals.complete(self._store, removal_id)

    def receipt(self, principal: Principal, removal_id: str) -> Removal:
        """A completed removal, for who asked for it. NotFoundError otherwise."""
        return removals.receipt_of(self._store, principal, removal_id)
