"""Replacement: what a newer version or KM of a document took the place of is evicted and purged."""

from __future__ import annotations

from collections.abc import Collection

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from km_registry.errors import ConflictError, StoreUnavailableError
from km_registry.fleet_types import subjects_of
from km_registry.jobs import JobQueue
from km_registry.registry import Registry
from km_registry.types import JobState, Superseded
from server.adapters import Adapters
from server.engine.base import EngineUnavailableError
from server.fleet import Fleet, NotAcknowledgedError
from server.letting_go import LettingGo
from server.once import Once

_log = structlog.get_logger(__name__)

#: What may be away or busy for a while; a later `resume` then finds it again.
PASSING = (
    EngineUnavailableError,
    RedisError,
    OperationalError,
    ConflictError,
    OSError,
    StoreUnavailableError,
    NotAcknowledgedError,
)


class Replacements:
    """Removes what is superseded, by the steps of a deletion, while the document goes on answering.

    The registry says what is left to do, so that a replacement goes on after a restart.
    """

    def __init__(
        self,
        registry: Registry,
        queue: JobQueue,
        composites: Adapters,
        letting_go: LettingGo,
        fleet: Fleet,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._composites = composites
        self._letting_go = letting_go
        self._fleet = fleet
        self._running: Once[str, None] = Once("replace")

    def begin(self, document_id: str) -> None:
        """Remove what of the document is superseded, in the background, unless that is going on already."""
        # Noted before anything is read: a deletion that begins later waits for it.
        self._running.begin(document_id, lambda: self._replace(document_id))

    async def resume(self) -> None:
        """Do all that is left to do, and wait for it; what cannot be done now is left for the next call."""
        for document_id in await run_in_threadpool(self._registry.pending_replacements):
            self.begin(document_id)
        await self.settled()

    async def retire(self, document_id: str, km_ids: Collection[str]) -> None:
        """Have the engine send away who still waits for a slot for one of these superseded KMs."""
        gone = await run_in_threadpool(self._registry.superseded, document_id)
        if gone is not None:
            await self._composites.retire_kms(km for km in gone.kms if km.id in km_ids)

    async def idle(self, document_id: str) -> None:
        """Wait for the document's replacement that is going on, if one is."""
        await self._running.idle(document_id)

    async def settled(self) -> None:
        """Wait for all that is going on. Failures are logged."""
        await self._running.settled()

    async def _replace(self, document_id: str) -> None:
        try:
            gone = await run_in_threadpool(self._registry.superseded, document_id)
            if gone is not None:
                await self._remove(gone)
        except PASSING as error:
            _log.warning("replacement not completed", document_id=document_id, error=type(error).__name__)

    async def _remove(self, gone: Superseded) -> None:
        await run_in_threadpool(self._stop_training, gone)
        await self._letting_go.superseded(gone)
        await self._fleet.acknowledged(subjects_of(gone), gone.document_id)
        await run_in_threadpool(self._registry.purge_superseded, gone)
        _log.info(
            "superseded purged",
            document_id=gone.document_id,
            versions=list(gone.versions),
            kms=[km.id for km in gone.kms],
        )

    def _stop_training(self, gone: Superseded) -> None:
        for job_id in gone.job_ids:
            # Any other job of these has ended by itself, and its worker may be about another one.
            if self._registry.job(job_id).state is JobState.CANCELLED:
                self._queue.stop(job_id)
