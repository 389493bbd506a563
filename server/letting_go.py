"""What was deleted or superseded, by this gateway or by another, leaves this gateway: its answers end, its
engine evicts, its memory and its copies go. Then it says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.fleet_types import Evicted, subjects_of
from km_registry.registry import Registry
from km_registry.types import KE, Superseded
from server.adapters import Adapters
from server.engine.base import Eviction
from server.fleet import Fleet
from server.in_flight import InFlight
from server.once import Once
from server.retrieval.retriever import Retriever

_log = structlog.get_logger(__name__)


class LettingGo:
    """Each of it can be repeated, and goes on without whoever asked for it. For one event loop."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        in_flight: InFlight,
        composites: Adapters,
        retriever: Retriever,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._in_flight = in_flight
        self._composites = composites
        self._retriever = retriever
        self._running: Once[str, Evicted] = Once("let go")
        self._looking: Once[str, None] = Once("look for what is gone")
        self._reconciling: Once[str, None] = Once("reconcile")

    async def document(self, document_id: str) -> Evicted:
        """Let go of a tombstoned document; what the engine had of it."""
        return await self._running.done(document_id, partial(self._document, document_id))

    async def superseded(self, gone: Superseded) -> Evicted:
        """Let go of superseded KMs and texts, once the answers that began with them have ended."""
        return await self._running.done(" ".join(subjects_of(gone)), partial(self._superseded, gone))

    async def ke(self, ke: KE) -> Evicted:
        """Let go of a tombstoned KE. Any answer that is under way may have chosen it."""
        return await self._running.done(ke.id, partial(self._ke, ke))

    def begin_pending(self) -> None:
        """Begin with what others wait for: what is gone, and not said to have left this gateway. What lies
        here of it goes too; whoever purges counts what goes with it."""
        self._looking.begin("all", self._look)

    async def _look(self) -> None:
        found = await run_in_threadpool(self._registry.gateways.unacknowledged, self._fleet.gateway.id)
        for document_id in found.documents:
            self._running.begin(document_id, partial(self._document, document_id, copies=True))
        for gone in found.superseded:
            key = " ".join(subjects_of(gone))
            self._running.begin(key, partial(self._superseded, gone, copies=True))
        if found.kes:
            for ke in await run_in_threadpool(self._registry.kes.pending):
                if ke.id in found.kes:
                    self._running.begin(ke.id, partial(self._ke, ke))

    def begin_reconciling(self) -> None:
        """Let go of all that was deleted while this gateway was not counted, and open the fence then."""
        self._reconciling.begin("all", self._reconcile)

    async def settled(self) -> None:
        """Wait for all that is going on. Failures are logged."""
        await self._looking.settled()
        await self._reconciling.settled()
        await self._running.settled()

    # --- each ------------------------------------------------------------------------------------------

    async def _document(self, document_id: str, *, copies: bool = False) -> Evicted:
        kms = await run_in_threadpool(self._registry.all_kms_of, document_id)
        # Whose answers have not begun.
        await self._composites.retire_kms(kms)
        await self._in_flight.drain(document_id)
        await self._retriever.forget(document_id)
        evicted = summed(await self._composites.evict_kms(kms))
        if copies:
            await self._forget_copies(document_id, [km.id for km in kms], whole=True)
        await self._fleet.acknowledge([document_id], evicted)
        return evicted

    async def _superseded(self, gone: Superseded, *, copies: bool = False) -> Evicted:
        # Every answer that began with the former text or KM. Later ones find the newer.
        await self._in_flight.drain(gone.document_id)
        if gone.versions:
            self._retriever.drop(gone.document_id)
        evicted = summed(await self._composites.evict_kms(gone.kms))
        if copies:
            await self._forget_copies(gone.document_id, [km.id for km in gone.kms], whole=False)
        await self._fleet.acknowledge(subjects_of(gone), evicted)
        return evicted

    async def _ke(self, ke: KE) -> Evicted:
        await self._in_flight.drain_all()
        evicted = summed(await self._composites.evict_ke(ke))
        await self._fleet.acknowledge([ke.id], evicted)
        return evicted

    async def _forget_copies(self, document_id: str, km_ids: Sequence[str], *, whole: bool) -> None:
        await run_in_threadpool(self._registry.forget_copies, document_id, km_ids, whole=whole)

    # --- after a time out of touch ---------------------------------------------------------------------

    async def _reconcile(self) -> None:
        fence = self._fleet.fence
        while fence.must_reconcile:
            lapses = fence.lapses
            # What was deleted from here on waits for this gateway, which is counted again.
            await self._forget_what_is_gone()
            fence.trust(lapses)
        _log.info("caught up with what was deleted; answering from documents again", lapses=lapses)

    async def _forget_what_is_gone(self) -> None:
        """Compare all that is here with what the records still have: their rows may be purged by now."""
        # What is given to the engine from here on was allowed by the records as they are.
        held, kes = dict(self._composites.held), self._composites.held_kes
        documents = {one.document_id for one in held.values()}
        documents |= {*self._retriever.documents, *self._in_flight.documents}
        there = await run_in_threadpool(
            self._registry.gateways.standing, documents=documents, kms=held.keys(), kes=kes
        )
        gone: defaultdict[str, list[str]] = defaultdict(list)
        for km_id in held.keys() - there.kms:
            gone[held[km_id].document_id].append(km_id)
        for document_id in {*gone, *documents - there.documents}:
            await self._forget(document_id, gone[document_id], whole=document_id not in there.documents)
        await self._composites.evict_held_kes(kes - there.kes)
        _log.info("reconciled", documents=len(documents), kms=len(held), gone=len(gone))

    async def _forget(self, document_id: str, km_ids: Sequence[str], *, whole: bool) -> None:
        await self._composites.retire_held(km_ids)
        await self._in_flight.drain(document_id)
        if whole:
            await self._retriever.forget(document_id)
            # What was begun before the drain may have asked for another one since.
            held = self._composites.held.items()
            km_ids = [km_id for km_id, one in held if one.document_id == document_id]
        await self._composites.evict_held(km_ids)
        await self._forget_copies(document_id, km_ids, whole=whole)


def summed(evictions: Sequence[Eviction]) -> Evicted:
    """What an engine acknowledged, in numbers."""
    return Evicted(
        adapters=sum(one.resident for one in evictions),
        slots=sum(one.from_slot for one in evictions),
        prefixes_forgotten=all(one.prefixes_forgotten for one in evictions),
        replicas=tuple(sorted({name for one in evictions for name in one.replicas})),
    )
