"""Removal of KMs alone, of former versions and of users: gone at once, then evicted, purged, receipted."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.jobs import JobQueue
from km_registry.registry import Registry
from km_registry.types import JobState, Principal, Removal, RemovalKind
from server.deletion import Deletions
from server.errors import RemovalPendingError
from server.once import Once
from server.replacing import PASSING, Replacements

_log = structlog.get_logger(__name__)


class Removing:
    """Completes what was asked to be removed: once begun, without its client, and after a restart."""

    def __init__(
        self, registry: Registry, queue: JobQueue, replacements: Replacements, deletions: Deletions
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._replacements = replacements
        self._deletions = deletions
        self._running: Once[str, Removal] = Once("remove")

    async def km(self, principal: Principal, document_id: str) -> Removal:
        """Remove the document's KM alone; the receipt. NotFoundError, ConflictError, RemovalPendingError."""
        return await self._asked(lambda: self._registry.removals.remove_km(principal, document_id))

    async def version(self, principal: Principal, document_id: str, version: int) -> Removal:
        """Remove a former version; the receipt. NotFoundError, ConflictError, RemovalPendingError."""
        return await self._asked(
            lambda: self._registry.removals.remove_version(principal, document_id, version)
        )

    async def user(self, by: Principal, user_id: str) -> Removal:
        """Remove a user with all they own; the receipt. NotFoundError, ConflictError, RemovalPendingError."""
        return await self._asked(lambda: self._registry.removals.remove_user(by, user_id))

    async def resume(self) -> int:
        """Complete what is pending; how many were. What cannot be completed now is left for the next call."""
        completed = 0
        for removal in await run_in_threadpool(self._registry.removals.pending):
            try:
                await self._completed(removal)
            except PASSING as error:
                _log.warning("removal not completed", removal=removal.id, error=type(error).__name__)
            else:
                completed += 1
        return completed

    async def settled(self) -> None:
        """Wait for what is going on."""
        await self._running.settled()

    async def _asked(self, ask: Callable[[], Removal]) -> Removal:
        removal = await run_in_threadpool(ask)
        try:
            return await self._completed(removal)
        except PASSING as error:
            raise RemovalPendingError(
                f"It is gone for everybody, but not all of it could be removed yet; that goes on by itself. "
                f"Ask GET /receipts/{removal.id} later."
            ) from error

    async def _completed(self, removal: Removal) -> Removal:
        return await self._running.done(removal.id, lambda: self._complete(removal))

    async def _complete(self, removal: Removal) -> Removal:
        if removal.kind is RemovalKind.USER:
            await self._delete_documents(removal)
        elif removal.document_id is not None:
            await self._purge(removal, removal.document_id)
        receipt = await run_in_threadpool(self._registry.removals.complete, removal.id)
        _log.info("removed", removal=removal.id, kind=str(removal.kind))
        return receipt

    async def _delete_documents(self, removal: Removal) -> None:
        await run_in_threadpool(self._registry.removals.tombstone_late, removal.id)
        await self._deletions.resume()

    async def _purge(self, removal: Removal, document_id: str) -> None:
        for job in await run_in_threadpool(self._registry.jobs_of, document_id):
            if job.state is JobState.CANCELLED:
                await run_in_threadpool(self._queue.stop, job.id)
        await self._replacements.retire(document_id, removal.km_ids)
        # What began before the removal was asked for knows nothing of it; what begins after does.
        await self._replacements.idle(document_id)
        self._replacements.begin(document_id)
        await self._replacements.idle(document_id)
