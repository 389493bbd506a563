"""The adapters of a replica: named by gateways in one way, known to the replica's engine in another."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from server.engine.base import Adapter, Engine, Eviction

#: How often a replica looks whether the files of what it holds are still there.
RECONCILE_S = 1.0


class ReplicaAdapters(Protocol):
    """What one replica knows of adapters, beside its engine. All methods belong to one event loop."""

    @property
    def look_every_s(self) -> float:
        """How long to wait between two looks for what was deleted, in seconds."""
        ...

    def using(self, adapter: Adapter) -> AbstractAsyncContextManager[Adapter]:
        """The adapter as the engine knows it, with its files on this machine for as long as the block runs.

        AdapterLoadError when they are damaged or missing, StoreUnavailableError when the store that has them
        is away.
        """
        ...

    async def retire(self, adapter: Adapter) -> int:
        """See Engine; of all that is made of it too."""
        ...

    async def evict(self, adapter: Adapter) -> Eviction:
        """See Engine; of all that is made of it too. Afterwards nothing of it lies in the replica's own
        directory."""
        ...

    def deleted(self) -> AsyncIterator[Adapter]:
        """Look once for what the engine may hold, or the replica's directory, and was deleted."""
        ...

    def forgotten(self, adapter: Adapter) -> None:
        """It was deleted and evicted: look for it no more."""
        ...

    def name_of(self, name: str) -> str:
        """What gateways call an adapter that the engine calls so."""
        ...

    def close(self) -> None:
        """Remove what lies in the replica's own directory. Blocking."""
        ...


#: Makes a replica's engine, not started yet, and what knows its adapters. Blocking.
MakeReplica = Callable[[], tuple[Engine, ReplicaAdapters]]


def with_shared_files(make: Callable[[], Engine]) -> tuple[Engine, ReplicaAdapters]:
    """A replica with the engine that `make` makes, and adapters whose files lie where gateways say."""
    engine = make()
    return engine, SharedAdapters(engine)


class SharedAdapters:
    """Adapters whose files lie where gateways say, on a file system that all share."""

    look_every_s = RECONCILE_S

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: By name, as the engine knows them: gateways count for themselves, and may see files elsewhere.
        self._known: dict[str, Adapter] = {}
        self._engine_ids = itertools.count(1)
        #: Names of those whose files are looked at.
        self._watched: set[str] = set()

    @asynccontextmanager
    async def using(self, adapter: Adapter) -> AsyncIterator[Adapter]:
        """See ReplicaAdapters. Whether the files are whole the engine sees."""
        yield self._local(adapter)

    async def retire(self, adapter: Adapter) -> int:
        """See ReplicaAdapters."""
        return await self._engine.retire(self._local(adapter))

    async def evict(self, adapter: Adapter) -> Eviction:
        """See ReplicaAdapters. Its files are the gateways' to remove."""
        evicted = await self._engine.evict(self._local(adapter))
        self._watched.discard(adapter.name)
        return evicted

    async def deleted(self) -> AsyncIterator[Adapter]:
        """See ReplicaAdapters: those whose files are gone."""
        for adapter in await asyncio.to_thread(self._without_files):
            yield adapter

    def forgotten(self, adapter: Adapter) -> None:
        """See ReplicaAdapters."""
        self._watched.discard(adapter.name)

    def name_of(self, name: str) -> str:
        """See ReplicaAdapters: the same."""
        return name

    def close(self) -> None:
        """See ReplicaAdapters: there is none."""

    def _local(self, adapter: Adapter) -> Adapter:
        known = self._known.get(adapter.name)
        if known is None:
            known = replace(adapter, engine_id=next(self._engine_ids))
            self._known[adapter.name] = known
        self._watched.add(adapter.name)
        return known

    def _without_files(self) -> list[Adapter]:
        return [self._known[name] for name in list(self._watched) if _is_gone(self._known[name].path)]


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        # A file system that is away for a moment says nothing about what is on it.
        return False
    return False
