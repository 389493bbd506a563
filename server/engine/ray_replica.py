"""One engine as a replica on Ray Serve: the very engine that serves alone on one machine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from ray import serve

from server.engine.base import (
    Adapter,
    Delta,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
)
from server.engine.ray_adapters import MakeReplica
from server.engine.ray_live import IN_SLOTS, MAX_MODEL_LEN

logger = logging.getLogger("ray.serve")

_NEWEST = 0.2


class NotThisReplicaError(Exception):
    """The replica that was meant is gone: Serve gave its call to another one."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a replica is, the process on which machine, and the settings that it was made with, by name."""

    fingerprint: str
    max_model_len: int
    host: str
    pid: int
    settings: Mapping[str, str] = field(default_factory=dict)


class EngineReplica:
    """Owns an engine. Serve calls every method in one event loop.

    A replica that starts holds no adapter, so nothing that was deleted while it was away. One that a deletion
    did not reach, since no gateway knew of it yet, sees what was deleted, and evicts by itself.
    """

    async def __init__(  # type: ignore[misc]
        self,
        make: MakeReplica,
        fingerprint: str,
        settings: Mapping[str, str],
    ) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._engine, self._adapters = await asyncio.to_thread(make)
        await self._engine.start()
        self._description = Description(
            fingerprint, self._engine.max_model_len, socket.gethostname(), os.getpid(), settings
        )
        self._first_token_s = 0.0
        self._reconciling = asyncio.create_task(self._reconcile(), name="reconcile")

    async def describe(self, *, to: str | None = None) -> Description:
        """What it is; any replica's without `to`. NotThisReplicaError for another one's calls."""
        if to is not None:
            self._check(to)
        return self._description

    async def generate(self, request: GenerationRequest) -> Generation:
        """See Engine."""
        async with self._ours(request) as ours:
            found = await self._engine.generate(ours)
        if found.first_token_s is not None:
            self._noted(found.first_token_s)
        return found

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine."""
        began, first = time.perf_counter(), True
        async with self._ours(request) as ours, aclosing(self._engine.stream(ours)) as deltas:
            async for delta in deltas:
                if first:
                    self._noted(time.perf_counter() - began)
                    first = False
                yield delta

    async def prefetch(self, adapter: Adapter) -> bool:
        """See Engine."""
        async with self._adapters.using(adapter) as ours:
            return await self._engine.prefetch(ours)

    async def retire(self, adapter: Adapter, *, to: str) -> int:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._adapters.retire(adapter)

    async def evict(self, adapter: Adapter, *, to: str) -> Eviction:
        """See Engine; `to` as above."""
        self._check(to)
        return await self._adapters.evict(adapter)

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

    def record_routing_stats(self) -> dict[str, list[str] | int]:
        """What gateways route by, and how much may be asked."""
        in_slots = sorted({self._adapters.name_of(name) for name in self._engine.in_slots()})
        return {IN_SLOTS: in_slots, MAX_MODEL_LEN: self._description.max_model_len}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What replicas are added by, beside the requests that Serve counts."""
        return {"first_token_s": self._first_token_s}

    async def __del__(self) -> None:
        """Serve calls it when the replica is to end."""
        self._reconciling.cancel()
        await self._engine.close()
        await asyncio.to_thread(self._adapters.close)

    @asynccontextmanager
    async def _ours(self, request: GenerationRequest) -> AsyncIterator[GenerationRequest]:
        """The request as the engine takes it, for as long as the block runs."""
        if request.adapter is None:
            yield request
            return
        async with self._adapters.using(request.adapter) as adapter:
            yield replace(request, adapter=adapter)

    def _noted(self, first_token_s: float) -> None:
        self._first_token_s += _NEWEST * (first_token_s - self._first_token_s)

    async def _reconcile(self) -> None:
        leaving: dict[str, asyncio.Task[None]] = {}
        while True:
            await asyncio.sleep(self._adapters.look_every_s)
            async for adapter in self._adapters.deleted():
                # Each by itself: it waits for the answers that it is in.
                if adapter.name not in leaving or leaving[adapter.name].done():
                    leaving[adapter.name] = asyncio.create_task(self._forget(adapter))
            leaving = {name: task for name, task in leaving.items() if not task.done()}

    async def _forget(self, adapter: Adapter) -> None:
        try:
            await self._adapters.retire(adapter)
            await self._adapters.evict(adapter)
        except EngineUnavailableError:
            # An engine that is gone holds nothing; its health check has the replica replaced.
            return
        except OSError as error:
            logger.warning("%s was deleted and is not removed yet: %s", adapter.name, error.strerror)
            return
        self._adapters.forgotten(adapter)
        logger.info("evicted %s, which was deleted", adapter.name)
