"""Adapters are made and loaded before they are asked: when a KM is published, when a document is opened."""

from __future__ import annotations

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.errors import ArtifactError, ConflictError, NotFoundError, StoreUnavailableError
from km_registry.registry import Registry
from km_registry.types import KM
from server.adapters import Adapters
from server.config import ServerSettings
from server.engine.base import AdapterGoneError, Engine, EngineUnavailableError
from server.in_flight import InFlight
from server.kes import KEs
from server.kms import KMs
from server.once import Once

_log = structlog.get_logger(__name__)

#: Documents that are looked after at a time; more are not worth a guess.
_MOST = 8


class Prefetching:
    """Has the engine load what mode auto will ask for. For one event loop."""

    def __init__(
        self,
        registry: Registry,
        kms: KMs,
        kes: KEs,
        composites: Adapters,
        engine: Engine,
        in_flight: InFlight,
        settings: ServerSettings,
    ) -> None:
        self._registry = registry
        self._kms = kms
        self._kes = kes
        self._composites = composites
        self._engine = engine
        self._in_flight = in_flight
        self._settings = settings
        self._running: Once[str, bool] = Once("prefetch")
        self._seen: int | None = None

    def opened(self, document_id: str) -> None:
        """Somebody who may ask the document looks at it: have what it needs loaded, in the background."""
        if len(self._running.keys()) < _MOST:
            self._running.begin(document_id, lambda: self._prefetch(document_id, make=True))

    async def published(self) -> int:
        """Have the KMs loaded that were published since the last call; how many are on their way."""
        if self._seen is None:
            self._seen = max((km.engine_id for km in await self._after(0)), default=0)
        found = 0
        for km in await self._after(self._seen):
            found += await self._prefetch(km.document_id, make=self._settings.compose_ahead)
            self._seen = max(self._seen, km.engine_id)
        return found

    async def settled(self) -> None:
        """Wait for what is going on."""
        await self._running.settled()

    async def _after(self, engine_id: int) -> list[KM]:
        return await run_in_threadpool(self._registry.kms_after, engine_id)

    async def _prefetch(self, document_id: str, *, make: bool) -> bool:
        """Begin to load what mode auto asks the document with; a composite is made only if `make`."""
        if not self._settings.auto_policy.trained.uses_km:
            return False
        # Counted as an answer is: a deletion that has begun waits for it, and after one nothing is loaded.
        with self._in_flight.answering(document_id):
            try:
                if not await run_in_threadpool(self._registry.trainings, [document_id]):
                    return False  # deleted; its KM's record stays until every gateway has let go of it
                km = await run_in_threadpool(self._kms.of, document_id)
                ke = await run_in_threadpool(self._kes.ahead)
                if ke is not None and not make:
                    return False
                async with self._composites.plugged(km, ke) as adapter:
                    return adapter is not None and await self._engine.prefetch(adapter)
            except (NotFoundError, ConflictError, AdapterGoneError, EngineUnavailableError):
                # Whoever asks is told, and why.
                return False
            except (ArtifactError, StoreUnavailableError, OSError) as error:
                _log.warning("nothing loaded ahead", document_id=document_id, reason=str(error))
                return False
