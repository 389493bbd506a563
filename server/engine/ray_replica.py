"""One engine as a replica on Ray Serve: the very engine that serves alone on one machine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from ray import serve

from server.engine.base import (
    Adapter,
    Delta,
    Engine,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
)
from server.engine.ray_live import IN_SLOTS

logger = logging.getLogger("ray.serve")

#: How often a replica looks whether the files of what it holds are still there.
RECONCILE_S = 1.0
_NEWEST = 0.2


class NotThisReplicaError(Exception):
    """The replica that was meant is gone: Serve gave its call to another one."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a replica is, and the process on which machine."""

    fingerprint: str
    max_model_len: int
    host: str
    pid: int


class EngineReplica:
    """Owns an engine. Serve calls every method in one event loop.

    A replica that starts holds no adapter, so nothing that was deleted while it was away. One that a deletion
    did not reach, since no gateway knew of it yet, sees that the files are gone, and evicts by itself.
    """

    async def __init__(self, make: Callable[[], Engine], fingerprint: str) -> None:  # type: ignore[misc]
        self._name = serve.get_replica_context().replica_id.unique_id
        self._engine = await asyncio.to_thread(make)
        await self._engine.start()
        self._description = Description(
            fingerprint, self._engine.max_model_len, socket.gethostname(), os.getpid()
        )
        #: By name, as the engine knows them: gateways count for themselves, and may see files elsewhere.
        self._known: dict[str, Adapter] = {}
        self._engine_ids = itertools.count(1)
        #: Names of those whose files are looked at.
        self._watched: set[str] = set()
        self._first_token_s = 0.0
        self._reconciling = asyncio.create_task(self._reconcile(), name="reconcile")

    async def describe(self, *, to: str | None = None) -> Description:
        """What it is; any replica's without `to`. NotThisReplicaError for another one's calls."""
        if to is not None:
            self._check(to)
        return self._description

    async def generate(self, request: GenerationRequest) -> Generation:
        """See Engine."""
        found = await self._engine.generate(self._ours(request))
        if found.first_token_s is not None:
            self._noted(found.first_token_s)
        return found

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine."""
        began, first = time.perf_counter(), True
        async with aclosing(self._engine.stream(self._ours(request))) as deltas:
            async for delta in deltas:
                if first:
                    self._noted(time.perf_counter() - began)
                    first = False
                yield delta

    async def prefetch(self, adapter: Adapter) -> bool:
        """See Engine."""
        return await self._engine.prefetch(self._local(adapter))

    async def retire(self, adapter: Adapter, *, to: str) -> int:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._engine.retire(self._local(adapter))

    async def evict(self, adapter: Adapter, *, to: str) -> Eviction:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._evict(self._local(adapter))

    async def status(self, *, to: str) -> EngineStatus:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._engine.status()

    def _check(self, to: str) -> None:
        if to != self._name:
            raise NotThisReplicaError

    # --- what Serve asks -----------------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Raises when the engine is not alive: Serve then puts another replica in this one's place."""
        if self._reconciling.done():
            raise EngineUnavailableError("this replica no longer looks for what was deleted")
        await self._engine.check()

    def record_routing_stats(self) -> dict[str, list[str]]:
        """What gateways route by."""
        return {IN_SLOTS: sorted(self._engine.in_slots())}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What replicas are added by, beside the requests that Serve counts."""
        return {"first_token_s": self._first_token_s}

    async def __del__(self) -> None:
        """Serve calls it when the replica is to end."""
        self._reconciling.cancel()
        await self._engine.close()

    def _ours(self, request: GenerationRequest) -> GenerationRequest:
        return replace(request, adapter=self._local(request.adapter)) if request.adapter else request

    def _local(self, adapter: Adapter) -> Adapter:
        """The adapter as this replica's engine knows it."""
        known = self._known.get(adapter.name)
        if known is None:
            known = replace(adapter, engine_id=next(self._engine_ids))
            self._known[adapter.name] = known
        self._watched.add(adapter.name)
        return known

    async def _evict(self, adapter: Adapter) -> Eviction:
        evicted = await self._engine.evict(adapter)
        self._watched.discard(adapter.name)
        return evicted

    def _noted(self, first_token_s: float) -> None:
        self._first_token_s += _NEWEST * (first_token_s - self._first_token_s)

    async def _reconcile(self) -> None:
        leaving: dict[str, asyncio.Task[None]] = {}
        while True:
            await asyncio.sleep(RECONCILE_S)
            for adapter in await asyncio.to_thread(self._deleted):
                # Each by itself: it waits for the answers that it is in.
                if adapter.name not in leaving or leaving[adapter.name].done():
                    leaving[adapter.name] = asyncio.create_task(self._forget(adapter))
            leaving = {name: task for name, task in leaving.items() if not task.done()}

    async def _forget(self, adapter: Adapter) -> None:
        try:
            await self._engine.retire(adapter)
            await self._evict(adapter)
        except EngineUnavailableError:
            # An engine that is gone holds nothing; its health check has the replica replaced.
            return
        logger.info("evicted %s, whose files are gone", adapter.name)

    def _deleted(self) -> list[Adapter]:
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
