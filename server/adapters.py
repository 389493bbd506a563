"""The port to what gives the engine adapters: for answers with KMs and KEs, and for what is deleted."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from km_registry.types import KE, KM
from server.engine.base import Adapter, Eviction


class Adapters(Protocol):
    """The adapters of KMs, KEs and their composites. All methods belong to one event loop."""

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

    async def settled(self) -> None:
        """Wait for what goes on in the background."""
        ...
