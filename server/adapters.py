"""The port to what gives the engine adapters: for answers with KMs and KEs, and for what is deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from km_registry.types import KE, KM
from server.engine.base import Adapter, Eviction


@dataclass(frozen=True, slots=True)
class Held:
    """A KM that the engine was given, and may hold."""

    document_id: str
    adapter: Adapter


class Adapters(Protocol):
    """The adapters of KMs, KEs and their composites. All methods belong to one event loop."""

    @property
    def held(self) -> Mapping[str, Held]:
        """By their ids, the KMs that the engine was given since the start and did not evict."""
        ...

    @property
    def held_kes(self) -> frozenset[str]:
        """Ids of the KEs that the engine may hold something of."""
        ...

    def plugged(self, km: KM | None, ke: KE | None) -> AbstractAsyncContextManager[Adapter | None]:
        """What the engine must be given for an answer with these, for as long as the block runs."""
        ...

    async def retire_kms(self, kms: Iterable[KM]) -> int:
        """Have the engine send away who still waits for a slot for one of the KMs or their composites; how
        many."""
        ...

    async def evict_kms(self, kms: Iterable[KM]) -> list[Eviction]:
        """Have the engine let go of KMs and all composites of them; what it says of those that were in it,
        and of all where replicas said so.

        Their files may be removed then. Nobody may be using them, or begin to.
        """
        ...

    async def evict_ke(self, ke: KE) -> list[Eviction]:
        """The same for all composites of a KE, and what serves it alone."""
        ...

    async def retire_held(self, km_ids: Iterable[str]) -> None:
        """The same as `retire_kms` for KMs of which the records know nothing any more."""
        ...

    async def evict_held(self, km_ids: Iterable[str]) -> None:
        """The same as `evict_kms` for KMs of which the records know nothing any more."""
        ...

    async def evict_held_kes(self, ke_ids: Iterable[str]) -> list[Eviction]:
        """The same as `evict_ke` for KEs of which the records know nothing any more."""
        ...

    async def settled(self) -> None:
        """Wait for what goes on in the background."""
        ...
