"""This gateway among those that serve from one database: its heartbeats, its word, and the others'."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool

from km_registry.errors import KMError
from km_registry.fleet_types import Beat, Evicted, Gateway
from km_registry.gateways import Gateways
from km_registry.ids import new_id
from server.fencing import Fence

_log = structlog.get_logger(__name__)

#: Between two looks at who has acknowledged, in seconds.
_LOOK_S = 0.1
#: A live gateway may be finishing answers, or its engine may be on its way back. What takes longer is
#: completed later. More than a gateway that died is counted as live.
PATIENCE_S = 30.0


class NotAcknowledgedError(KMError):
    """Other gateways have not let go of it yet."""


class Fleet:
    """Without others, and without a database that others can reach, it costs nothing. For one event loop."""

    def __init__(self, gateways: Gateways, *, engine: str, base_fingerprint: str) -> None:
        self._gateways = gateways
        self.fence = Fence()
        self.gateway = Gateway(new_id("gtw"), "", socket.gethostname(), engine, base_fingerprint)
        #: The others that lived at the last heartbeat.
        self.others: tuple[Gateway, ...] = ()
        self.has_joined = False
        # A thread of its own: heartbeats wait for nobody's work.
        self._beating = ThreadPoolExecutor(1, "heartbeat")

    @property
    def strangers(self) -> list[Gateway]:
        """The others that serve another base model."""
        return [one for one in self.others if one.base_fingerprint != self.gateway.base_fingerprint]

    @property
    def warning(self) -> str | None:
        """What is off among them, for people."""
        if not self.strangers:
            return None
        hosts = ", ".join(sorted({one.host for one in self.strangers}))
        return (
            f"Gateways on {hosts} use this database with another base model. Each refuses the KMs of the "
            "other's: give all the same KM_BASE_MODEL, or a database of their own."
        )

    async def join(self, home: str) -> None:
        """Be counted from here on, before anything is served. `home` is the data directory's id."""
        self.gateway = Gateway(
            self.gateway.id, home, self.gateway.host, self.gateway.engine, self.gateway.base_fingerprint
        )
        begun = self.fence.clock()
        self._found(await run_in_threadpool(self._gateways.join, self.gateway))
        self.has_joined = True
        self.fence.joined(begun)
        others = {one.id: one.host for one in self.others}
        _log.info("gateway joined", gateway=self.gateway.id, host=self.gateway.host, others=others)

    async def leave(self) -> None:
        """Serve no more, so that nobody waits for this gateway. Idempotent."""
        if self.has_joined:
            self.has_joined = False
            self.fence.close()
            # Behind a heartbeat that is under way, which would bring this gateway back.
            work = asyncio.get_running_loop().run_in_executor
            await work(self._beating, self._gateways.leave, self.gateway.id)
        self._beating.shutdown(wait=False)

    async def beat(self) -> None:
        """Say that this gateway lives."""
        begun = self.fence.clock()
        beat = await asyncio.get_running_loop().run_in_executor(
            self._beating, self._gateways.beat, self.gateway
        )
        counted = beat.silent_s is not None and beat.silent_s <= self._gateways.live_s
        self.fence.beaten(begun, counted=counted)
        self._found(beat)

    async def acknowledge(self, subjects: Collection[str], evicted: Evicted) -> None:
        """Give this gateway's word that it has nothing of these any more, where somebody may wait for it."""
        if self.has_joined and self.others and subjects:
            await run_in_threadpool(self._gateways.acknowledge, self.gateway.id, subjects, evicted)

    async def acknowledged(
        self, subjects: Collection[str], document_id: str | None = None
    ) -> dict[str, Evicted]:
        """Wait until every other live gateway has let go of these, or of the document as a whole; what each
        had of it, as it said, this one too. NotAcknowledgedError when that takes long: they go on, and it can
        be asked again."""
        # Also once this gateway has left: what it ends then the others may still answer from.
        if not self._gateways.may_have_others or not subjects:
            return {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    found = await run_in_threadpool(
                        self._gateways.acknowledged, self.gateway.id, subjects, document_id
                    )
                    if not found.awaited:
                        return found.by
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise NotAcknowledgedError(
                f"Gateways have not let go of it yet: {', '.join(found.awaited)}"
            ) from error

    def receipt(self, evicted: Evicted, told: dict[str, Evicted]) -> dict[str, Any]:
        """What a receipt says of the engines: what this one and the others let go of, and who they are.

        What this one said counts, if it did: a deletion that is completed later finds nothing here any more.
        """
        by = {self.gateway.id: evicted, **told}
        together = sum(by.values(), Evicted())
        found: dict[str, Any] = {
            "engine_adapters": together.adapters,
            "engine_slots": together.slots,
            "engine_prefixes_forgotten": together.prefixes_forgotten,
        }
        if together.replicas:
            found["engine_replicas"] = list(together.replicas)
        if self._gateways.may_have_others:
            found["engine_gateways"] = sorted(by)
        return found

    def _found(self, beat: Beat) -> None:
        before = {one.id for one in self.others}
        self.others = beat.others
        for one in self.strangers:
            if one.id not in before:
                _log.warning(
                    "another gateway on this database serves another base model: each refuses the KMs of the "
                    "other's; give both the same KM_BASE_MODEL, or another database",
                    gateway=one.id,
                    host=one.host,
                    base_fingerprint=one.base_fingerprint,
                )
