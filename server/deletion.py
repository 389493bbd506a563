"""Deletion: close the document, stop its training, let its answers finish, evict, purge, give a receipt."""

from __future__ import annotations

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.jobs import JobQueue
from km_registry.registry import Registry
from km_registry.types import Document, Principal, Receipt
from server.adapters import Adapters
from server.errors import DeletionPendingError
from server.in_flight import InFlight
from server.once import Once
from server.replacing import PASSING, Replacements
from server.retrieval.retriever import Retriever

_log = structlog.get_logger(__name__)


class Deletions:
    """Forgets documents. Once begun, a deletion goes on without its client, and after a restart."""

    def __init__(
        self,
        registry: Registry,
        queue: JobQueue,
        in_flight: InFlight,
        replacements: Replacements,
        retriever: Retriever,
        composites: Adapters,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._in_flight = in_flight
        self._replacements = replacements
        self._retriever = retriever
        self._composites = composites
        self._running: Once[str, Receipt] = Once("forget")

    async def forget(self, principal: Principal, document_id: str) -> Receipt:
        """Delete a document and everything made of it. From the first step on it is 404 for everybody.

        Raises:
            NotFoundError: there is no such document, or it is not theirs.
            DeletionPendingError: the queue, the engine or the database is away; `resume` completes it.
        """
        document = await run_in_threadpool(self._registry.tombstone, principal, document_id)
        try:
            return await self._completed(document)
        except PASSING as error:
            raise DeletionPendingError from error

    async def resume(self) -> int:
        """Complete the deletions that were begun and have no receipt; returns how many were completed.

        One that cannot be completed now is logged and left for the next call.
        """
        completed = 0
        for document in await run_in_threadpool(self._registry.pending_deletions):
            try:
                await self._completed(document)
            except PASSING as error:
                _log.warning("deletion not completed", document_id=document.id, error=type(error).__name__)
            else:
                completed += 1
        return completed

    async def settled(self) -> None:
        """Wait for the deletions that are running, for a server that stops. Failures are logged."""
        await self._running.settled()

    async def _completed(self, document: Document) -> Receipt:
        return await self._running.done(document.id, lambda: self._complete(document))

    async def _complete(self, document: Document) -> Receipt:
        # Twice: no answer in flight need wait for passages that are still being made, and one that was let in
        # just before the tombstone may begin to make them.
        await self._retriever.forget(document.id)
        # None begins from here on: of a tombstoned document nothing is superseded.
        await self._replacements.idle(document.id)
        await self._stop_training(document.id)
        kms = await run_in_threadpool(self._registry.all_kms_of, document.id)
        # Whose answers have not begun.
        await self._composites.retire_kms(kms)
        await self._in_flight.drain(document.id)
        await self._retriever.forget(document.id)
        evicted = await self._composites.evict_kms(kms)
        purged = await run_in_threadpool(self._registry.purge, document.id)
        purged |= {
            "engine_adapters": sum(one.resident for one in evicted),
            "engine_slots": sum(one.from_slot for one in evicted),
            "engine_prefixes_forgotten": all(one.prefixes_forgotten for one in evicted),
        }
        if replicas := {name for one in evicted for name in one.replicas}:
            purged["engine_replicas"] = sorted(replicas)
        receipt = await run_in_threadpool(self._registry.complete_deletion, document.id, purged)
        _log.info("document deleted", document_id=document.id, evicted=[one.name for one in evicted])
        return receipt

    async def _stop_training(self, document_id: str) -> None:
        # Also those that a newer version cancelled: their workers may not have noticed yet.
        for job in await run_in_threadpool(self._registry.jobs_of, document_id):
            await run_in_threadpool(self._queue.stop, job.id)
