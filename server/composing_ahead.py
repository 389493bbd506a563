"""Composites made when a KM is published, so that not even its first question waits for one."""

from __future__ import annotations

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.errors import ArtifactError
from km_registry.registry import Registry
from km_registry.types import KM
from server.composites import Composites
from server.in_flight import InFlight
from server.kes import KEs

_log = structlog.get_logger(__name__)


class ComposingAhead:
    """Makes the composites that mode auto will ask for, of the KMs that are published from now on."""

    def __init__(self, registry: Registry, kes: KEs, composites: Composites, in_flight: InFlight) -> None:
        self._registry = registry
        self._kes = kes
        self._composites = composites
        self._in_flight = in_flight
        self._seen: int | None = None

    async def compose(self) -> int:
        """Make what is missing for the KMs published since the last call; how many were made."""
        if self._seen is None:
            self._seen = max((km.engine_id for km in await self._published(0)), default=0)
        made = 0
        for km in await self._published(self._seen):
            made += await self._compose(km)
            self._seen = max(self._seen, km.engine_id)
        return made

    async def _published(self, after: int) -> list[KM]:
        return await run_in_threadpool(self._registry.kms_after, after)

    async def _compose(self, km: KM) -> bool:
        # Counted as an answer is: a deletion that has begun waits for it, and after one nothing is made.
        with self._in_flight.answering(km.document_id):
            ke = await run_in_threadpool(self._kes.ahead)
            if ke is None or await run_in_threadpool(self._registry.km_of, km.document_id) != km:
                return False
            try:
                return await self._composites.prepare(ke, km)
            except (ArtifactError, OSError) as error:
                _log.warning("no composite made ahead", km_id=km.id, ke_id=ke.id, reason=str(error))
                return False
