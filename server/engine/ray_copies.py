"""The adapters of a replica that shares no file system with gateways: KMs and KEs come from the store, and
are joined here, by what joins them in a server of one machine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from km_registry.copies import Copies
from km_registry.errors import ArtifactError, StoreUnavailableError
from km_registry.process_directory import ProcessDirectory
from km_registry.types import KE, KM
from server.composites import Composites
from server.engine.base import Adapter, AdapterLoadError, Engine, EngineUnavailableError, Eviction
from server.in_flight import InFlight
from server.kms import adapter_of
from server.metrics import Metrics

#: How often the store is asked for each KM and KE that is here.
LOOK_S = 5.0
#: Of so many KMs and KEs, those that were used last.
MOST = 1024
#: The store is asked for so many at a time.
_AT_ONCE = 32


class CopiedAdapters:
    """Implements ReplicaAdapters. What it copies lies in a directory that ends with the replica.

    Whatever was fetched is looked for in the store until that says that it is gone: an eviction alone does
    not end it, since a request that came a moment later may have fetched it again.
    """

    def __init__(
        self,
        engine: Engine,
        directory: ProcessDirectory,
        copies: Copies,
        *,
        composite_bytes: int,
        look_every_s: float = LOOK_S,
    ) -> None:
        """`copies` lie in the directory; composites take at most so many bytes of it beside them."""
        self.look_every_s = look_every_s
        self._directory = directory
        self._copies = copies
        self._composites = Composites(copies.composites, engine, composite_bytes, Metrics(), copies.held)
        self._asked = InFlight()
        #: Those used last are last.
        self._watched: OrderedDict[str, KM | KE] = OrderedDict()

    @asynccontextmanager
    async def using(self, adapter: Adapter) -> AsyncIterator[Adapter]:
        """See ReplicaAdapters."""
        km = self._copies.here(adapter.km) if adapter.km else None
        ke = self._copies.here(adapter.ke) if adapter.ke else None
        async with AsyncExitStack() as stack:
            for one in (km, ke):
                if one is not None:
                    stack.enter_context(self._asked.answering(one.id))
                    self._watched[one.id] = one
                    self._watched.move_to_end(one.id)
            local = await self._plugged(stack, adapter, km, ke)
            try:
                yield local
            except AdapterLoadError:
                for one in (km, ke):
                    if one is not None:
                        await asyncio.to_thread(self._copies.remove_if_damaged, one)
                raise

    async def retire(self, adapter: Adapter) -> int:
        """See ReplicaAdapters. Of a KE, whose answers gateways wait for, none."""
        return await self._composites.retire_kms([self._copies.here(adapter.km)]) if adapter.km else 0

    async def evict(self, adapter: Adapter) -> Eviction:
        """See ReplicaAdapters."""
        one = _made_of(adapter)
        await self._asked.drain(one.id)
        evicted = await self._let_go(one)
        return Eviction(
            adapter.name,
            from_slot=any(part.from_slot for part in evicted),
            from_memory=any(part.from_memory for part in evicted),
            prefixes_forgotten=all(part.prefixes_forgotten for part in evicted),
        )

    async def deleted(self) -> AsyncIterator[Adapter]:
        """See ReplicaAdapters: those that the store does not have. Those used longest ago leave besides."""
        await self._make_room()
        watched = list(self._watched.values())
        for start in range(0, len(watched), _AT_ONCE):
            some = watched[start : start + _AT_ONCE]
            try:
                stored = await asyncio.gather(
                    *(asyncio.to_thread(self._copies.is_stored, one) for one in some)
                )
            except StoreUnavailableError:
                # Says nothing about what is in it.
                return
            for one, is_there in zip(some, stored, strict=True):
                if not is_there:
                    yield adapter_of(one)

    def forgotten(self, adapter: Adapter) -> None:
        """See ReplicaAdapters. What somebody uses, or fetches, is looked for again."""
        one = _made_of(adapter)
        if one.id not in self._asked and not self._copies.is_used(one):
            self._watched.pop(one.id, None)

    def name_of(self, name: str) -> str:
        """See ReplicaAdapters: without what tells a composite from the same one made before."""
        return name.partition("-")[0]

    def close(self) -> None:
        """See ReplicaAdapters."""
        self._directory.close()

    async def _plugged(
        self, stack: AsyncExitStack, adapter: Adapter, km: KM | None, ke: KE | None
    ) -> Adapter:
        try:
            local = await stack.enter_async_context(self._composites.plugged(km, ke))
        except ArtifactError as error:
            raise AdapterLoadError(f"a replica cannot have adapter {adapter.name}: {error}") from error
        except OSError as error:
            raise EngineUnavailableError(
                f"a replica cannot keep adapter {adapter.name} in {self._directory.path} ({error.strerror}): "
                "make room there"
            ) from error
        assert local is not None
        return local

    async def _let_go(self, one: KM | KE) -> list[Eviction]:
        if isinstance(one, KM):
            evicted = await self._composites.evict_kms([self._copies.here(one)])
        else:
            evicted = await self._composites.evict_ke(one)
        await asyncio.to_thread(self._copies.remove, one)
        return evicted

    async def _make_room(self) -> None:
        for one in list(self._watched.values())[:-MOST]:
            if one.id not in self._asked and not self._copies.is_used(one):
                await self._let_go(one)
                self.forgotten(adapter_of(one))


def _made_of(adapter: Adapter) -> KM | KE:
    one = adapter.km or adapter.ke
    assert one is not None, "only what gateways that share the store name"
    return one
