"""Composites at serving: made when first needed, kept within a bound, never removed under an answer."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry import composites
from km_registry.artifacts import verify, verify_ke
from km_registry.compose import compose
from km_registry.types import KE, KM
from server.adapters import Held
from server.engine.base import Adapter, AdapterLoadError, Engine, EngineUnavailableError, Eviction
from server.kms import adapter_of
from server.metrics import Metrics
from server.once import Once

_log = structlog.get_logger(__name__)

#: Has the files of a KM or a KE on this machine for as long as a block runs. Blocking.
Holding = Callable[[KE | KM], AbstractContextManager[Path]]

#: The engine's ids of composites begin here, and those of KMs, which the database counts from 1, end before.
FIRST_ENGINE_ID = 2**30


@dataclass(slots=True)
class _Kept:
    """A composite on disk. The engine gets to know it when it is first used.

    A `broken` one could not be loaded: it is removed, so that the next answer has it made anew.
    """

    path: Path
    size: int
    adapter: Adapter | None = None
    users: int = 0
    broken: bool = False


class Composites:
    """Implements Adapters with composites that lie here. All methods belong to one event loop.

    `holding` is needed where the files of KMs and KEs may leave this machine: they stay within it.

    A composite that was removed and made again is another adapter for the engine: names and ids are never
    used twice.
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        max_bytes: int,
        metrics: Metrics,
        holding: Holding | None = None,
    ) -> None:
        self._root = root
        self._holding = holding
        self._engine = engine
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._engine_ids = itertools.count(FIRST_ENGINE_ID)
        # Gateways that share engine replicas make composites of their own, which are evicted one by one.
        self._mark = secrets.token_hex(4)
        self._making: Once[Path, None] = Once("compose")
        self._leaving: Once[Path, None] = Once("remove composite")
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()
        #: See Adapters.
        self.held: dict[str, Held] = {}
        composites.remove_unfinished(root)
        for path in composites.all_composites(root):
            self._kept[path] = _Kept(path, _size(path))
        self._report()

    @property
    def bytes(self) -> int:
        """What all of them take on disk."""
        return sum(kept.size for kept in self._kept.values())

    @property
    def held_kes(self) -> frozenset[str]:
        """See Adapters: those that composites were made of."""
        return frozenset(_ke_id(path) for path in self._known())

    @asynccontextmanager
    async def using(self, ke: KE, km: KM | None) -> AsyncIterator[Adapter]:
        """The composite of the two, or the KE alone, for as long as the block runs. Made if need be.

        ArtifactError when the two do not fit, or their files are damaged.
        """
        path = composites.composite_dir(self._root, ke, km)
        while (kept := self._kept.get(path)) is None:
            await self._made(path, ke, km)
        if kept.adapter is None:
            engine_id = next(self._engine_ids)
            name = f"{path.name.partition('.')[2]}-{self._mark}{engine_id}"
            kept.adapter = Adapter(name, engine_id, path, km, ke)
        self._kept.move_to_end(path)
        os.utime(path)  # the order outlives a restart
        kept.users += 1
        try:
            yield kept.adapter
        except AdapterLoadError:
            kept.broken = True
            raise
        finally:
            kept.users -= 1
            self._make_room()

    @asynccontextmanager
    async def plugged(self, km: KM | None, ke: KE | None) -> AsyncIterator[Adapter | None]:
        """See Adapters: the KM, the KE, or their composite, made if need be."""
        if km is not None:
            # Also where it only has a part in a composite.
            self.held.setdefault(km.id, Held(km.document_id, adapter_of(km)))
        if ke is not None:
            async with self.using(ke, km) as adapter:
                yield adapter
        elif km is not None:
            async with self._here(km):
                yield adapter_of(km)
        else:
            yield None

    async def retire_kms(self, kms: Iterable[KM]) -> int:
        """See Adapters."""
        sent_away = 0
        for km in kms:
            sent_away += await self._retire(km.id, adapter_of(km))
        return sent_away

    async def evict_kms(self, kms: Iterable[KM]) -> list[Eviction]:
        """See Adapters."""
        evicted = []
        for km in kms:
            evicted += await self._evict_km(km.id, adapter_of(km))
        return [one for one in evicted if one.resident or one.replicas]

    async def evict_ke(self, ke: KE) -> list[Eviction]:
        """See Adapters."""
        return await self.evict_held_kes([ke.id])

    async def retire_held(self, km_ids: Iterable[str]) -> None:
        """See Adapters."""
        for km_id in km_ids:
            if held := self.held.get(km_id):
                await self._retire(km_id, held.adapter)

    async def evict_held(self, km_ids: Iterable[str]) -> None:
        """See Adapters."""
        for km_id in km_ids:
            if held := self.held.get(km_id):
                await self._evict_km(km_id, held.adapter)

    async def evict_held_kes(self, ke_ids: Iterable[str]) -> list[Eviction]:
        """See Adapters."""
        ids = set(ke_ids)
        return await self._evict([path for path in self._known() if _ke_id(path) in ids])

    async def settled(self) -> None:
        """See Adapters: what is being made and removed."""
        await self._making.settled()
        await self._leaving.settled()

    # --- making ----------------------------------------------------------------------------------------

    async def _made(self, path: Path, ke: KE, km: KM | None) -> None:
        """Wait until it is there. Whoever asks first makes it, and the others wait for the same."""
        await self._leaving.idle(path)
        # Whoever asked may go away; it is made for the next one then.
        await self._making.done(path, lambda: self._make(path, ke, km))

    async def _make(self, path: Path, ke: KE, km: KM | None) -> None:
        began = time.perf_counter()
        async with self._here(ke), self._here(km):
            size = await run_in_threadpool(_composed, ke, path, km)
        self._metrics.composed(time.perf_counter() - began)
        self._kept[path] = _Kept(path, size)
        self._report()

    @asynccontextmanager
    async def _here(self, one: KE | KM | None) -> AsyncIterator[None]:
        """Within it the files of a KM or a KE are on this machine."""
        if self._holding is None or one is None:
            yield
            return
        held = self._holding(one)
        await run_in_threadpool(held.__enter__)
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    # --- letting go ------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Remove what was used longest ago while there is more than the bound, but nothing in use."""
        over = self.bytes - self._max_bytes
        for kept in [one for one in self._kept.values() if not one.users]:
            if over > 0 or kept.broken:
                over -= kept.size
                self._remove(kept)

    def _remove(self, kept: _Kept) -> None:
        del self._kept[kept.path]
        self._leaving.begin(kept.path, lambda: self._removed(kept))

    async def _removed(self, kept: _Kept) -> None:
        try:
            if kept.adapter is not None:
                await self._engine.evict(kept.adapter)
        except EngineUnavailableError:
            # It may hold the files still; they are looked at again at the next start.
            _log.warning("composite kept: the engine is not there", composite=kept.path.name)
            return
        await run_in_threadpool(composites.remove, kept.path)
        self._report()

    async def _retire(self, km_id: str, adapter: Adapter) -> int:
        sent_away = 0
        for path, kept in list(self._kept.items()):
            if path.parent.name == km_id and kept.adapter is not None:
                sent_away += await self._engine.retire(kept.adapter)
        return sent_away + await self._engine.retire(adapter)

    async def _evict_km(self, km_id: str, adapter: Adapter) -> list[Eviction]:
        evicted = await self._evict([path for path in self._known() if path.parent.name == km_id])
        evicted.append(await self._engine.evict(adapter))
        self.held.pop(km_id, None)
        return evicted

    async def _evict(self, paths: list[Path]) -> list[Eviction]:
        evicted = []
        for path in paths:
            await self._making.idle(path)
            await self._leaving.idle(path)
            kept = self._kept.get(path)
            if kept is not None and kept.adapter is not None:
                evicted.append(await self._engine.evict(kept.adapter))
            self._kept.pop(path, None)
        self._report()
        return [one for one in evicted if one.resident]

    def _known(self) -> list[Path]:
        return [*self._kept, *self._making.keys(), *self._leaving.keys()]

    def _report(self) -> None:
        self._metrics.composites(len(self._kept), self.bytes)


def _composed(ke: KE, path: Path, km: KM | None) -> int:
    """Compose the two, as they were when they came into the registry. Blocking. ArtifactError, OSError."""
    verify_ke(Path(ke.path), base_fingerprint=ke.base_fingerprint, tensors=False)
    if km is not None:
        verify(Path(km.path), base_fingerprint=km.base_fingerprint, tensors=False)
    return compose(Path(ke.path), path, km=Path(km.path) if km else None)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in os.scandir(path) if file.is_file())


def _ke_id(path: Path) -> str:
    return path.name.partition(".")[0]
