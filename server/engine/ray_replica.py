"""One engine as a replica on Ray Serve: the very engine that serves alone on one machine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

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
        self._known: dict[str, Adapter] = {}
        self._first_token_s = 0.0
        self._reconciling = asyncio.create_task(self._reconcile(), name="reconcile")

    async def describe(self, *, to: str | None = None) -> Description:
        """What it is; any replica's without `to`. NotThisReplicaError for another one's calls."""
        if to is not None:
            self._check(to)
        return self._description

    async def generate(self, request: GenerationRequest) -> Generation:
        """See Engine."""
        self._know(request.adapter)
        found = await self._engine.generate(request)
        if found.first_token_s is not None:
            self._noted(found.first_token_s)
        return found

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine."""
        self._know(request.adapter)
        began, first = time.perf_counter(), True
        async with aclosing(self._engine.stream(request)) as deltas:
            async for delta in deltas:
                if first:
                    self._noted(time.perf_counter() - began)
                    first = False
                yield delta

    async def prefetch(self, adapter: Adapter) -> bool:
        """See Engine."""
        self._know(adapter)
        return await self._engine.prefetch(adapter)

    async def retire(self, adapter: Adapter, *, to: str) -> int:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._engine.retire(adapter)

    async def evict(self, adapter: Adapter, *, to: str) -> Eviction:
        """See Engine; `to` as above."""
        self._check(to)
        self._known.pop(adapter.name, None)
        return await self._engine.evict(adapter)

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

    def _know(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            self._known[adapter.name] = adapter

    def _noted(self, first_token_s: float) -> None:
        self._first_token_s += _NEWEST * (first_token_s - self._first_token_s)

    async def _reconcile(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_S)
            for adapter in await asyncio.to_thread(self._deleted):
                try:
                    await self._engine.retire(adapter)
                    await self._engine.evict(adapter)
                except EngineUnavailableError:
                    # An engine that is gone holds nothing; its health check has it replaced.
                    continue
                self._known.pop(adapter.name, None)
                logger.info("evicted %s, whose files are gone", adapter.name)

    def _deleted(self) -> list[Adapter]:
        return [adapter for adapter in list(self._known.values()) if not adapter.path.exists()]
