"""Adapters for engine replicas that have KMs and KEs from the store themselves: nothing of them lies here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from km_registry.compose import composite_name
from km_registry.types import KE, KM
from server.engine.base import Adapter, Engine, Eviction
from server.kms import adapter_of


class ComposedElsewhere:
    """Implements Adapters. Every gateway calls a composite by its content, so that they find each other's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def plugged(self, km: KM | None, ke: KE | None) -> AsyncIterator[Adapter | None]:
        """See Adapters. Whether they can be had, and fit, the replica says."""
        if ke is not None:
            yield Adapter(composite_name(ke.digest, km.digest if km else None), 0, Path(), km, ke)
        else:
            yield None if km is None else adapter_of(km)

    async def retire_kms(self, kms: Iterable[KM]) -> int:
        """See Adapters."""
        return sum([await self._engine.retire(adapter_of(km)) for km in kms])

    async def evict_kms(self, kms: Iterable[KM]) -> list[Eviction]:
        """See Adapters."""
        return [await self._engine.evict(adapter_of(km)) for km in kms]

    async def evict_ke(self, ke: KE) -> list[Eviction]:
        """See Adapters."""
        return [await self._engine.evict(adapter_of(ke))]

    async def settled(self) -> None:
        """See Adapters: nothing does."""
