"""Adapters for engine replicas that have KMs and KEs from the store themselves: nothing of them lies here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from km_registry.compose import composite_name
from km_registry.types import KE, KM
from server.adapters import Held
from server.engine.base import Adapter, Engine, Eviction
from server.kms import adapter_of


class ComposedElsewhere:
    """Implements Adapters. Every gateway calls a composite by its content, so that they find each other's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: See Adapters.
        self.held: dict[str, Held] = {}
        self._kes: dict[str, KE] = {}

    @property
    def held_kes(self) -> frozenset[str]:
        """See Adapters."""
        return frozenset(self._kes)

    @asynccontextmanager
    async def plugged(self, km: KM | None, ke: KE | None) -> AsyncIterator[Adapter | None]:
        """See Adapters. Whether they can be had, and fit, the replica says."""
        if km is not None:
            self.held.setdefault(km.id, Held(km.document_id, adapter_of(km)))
        if ke is not None:
            self._kes[ke.id] = ke
        if ke is not None:
            yield Adapter(composite_name(ke.digest, km.digest if km else None), 0, Path(), km, ke)
        else:
            yield None if km is None else adapter_of(km)

    async def retire_kms(self, kms: Iterable[KM]) -> int:
        """See Adapters."""
        return sum([await self._engine.retire(adapter_of(km)) for km in kms])

    async def evict_kms(self, kms: Iterable[KM]) -> list[Eviction]:
        """See Adapters."""
        return [await self._evict(km.id, adapter_of(km)) for km in kms]

    async def evict_ke(self, ke: KE) -> list[Eviction]:
        """See Adapters."""
        evicted = [await self._engine.evict(adapter_of(ke))]
        self._kes.pop(ke.id, None)
        return evicted

    async def retire_held(self, km_ids: Iterable[str]) -> None:
        """See Adapters."""
        for km_id in km_ids:
            if held := self.held.get(km_id):
                await self._engine.retire(held.adapter)

    async def evict_held(self, km_ids: Iterable[str]) -> None:
        """See Adapters."""
        for km_id in km_ids:
            if held := self.held.get(km_id):
                await self._evict(km_id, held.adapter)

    async def evict_held_kes(self, ke_ids: Iterable[str]) -> list[Eviction]:
        """See Adapters."""
        held = [ke for ke_id in ke_ids if (ke := self._kes.get(ke_id))]
        return [one for ke in held for one in await self.evict_ke(ke)]

    async def settled(self) -> None:
        """See Adapters: nothing does."""

    async def _evict(self, km_id: str, adapter: Adapter) -> Eviction:
        evicted = await self._engine.evict(adapter)
        self.held.pop(km_id, None)
        return evicted
