"""Requests wait here until their adapter is in one of the engine's slots, and stay admitted until they end.

Residency decides; this carries its decisions out, one move after the other in the order in which they were
decided, and lets the requests in.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from server.engine.base import Adapter, AdapterGoneError, EngineUnavailableError
from server.engine.residency import Counts, Decision, Move, Residency


class Mover(Protocol):
    """The engine's side: where adapters really are."""

    async def prepare(self, adapter: Adapter) -> None:
        """Look at the adapter's files before they are loaded. AdapterLoadError when they cannot be."""
        ...

    async def move(self, move: Move, adapter: Adapter) -> None:
        """Make the move. AdapterLoadError when the adapter cannot be loaded; EngineUnavailableError."""
        ...

    async def forget(self, adapter: Adapter) -> None:
        """Remove the adapter wherever it is, and overwrite what held it. EngineUnavailableError."""
        ...


@dataclass(slots=True)
class _Request:
    adapter: Adapter
    admitted: asyncio.Future[None]


class Admission:
    """The adapters of one engine that runs. All methods belong to one event loop."""

    def __init__(self, mover: Mover, *, slots: int, places: int) -> None:
        self._mover = mover
        self._residency = Residency(slots=slots, places=places)
        self._tickets = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        #: Those that are somewhere but on disk, or asked for.
        self._adapters: dict[int, Adapter] = {}
        self._retired: set[int] = set()
        self._last: asyncio.Task[None] | None = None
        self._moving: set[asyncio.Task[None]] = set()
        self._draining: dict[int, list[asyncio.Future[None]]] = {}
        self._closed: EngineUnavailableError | None = None

    @asynccontextmanager
    async def holding(self, adapter: Adapter, priority: int = 0) -> AsyncIterator[None]:
        """The adapter is in a slot while the block runs.

        Raises:
            AdapterLoadError: it cannot be loaded.
            AdapterGoneError: it was retired while the request waited, or before.
            EngineUnavailableError: the engine was closed meanwhile.
            ValueError: its id belongs to another name or path.
        """
        self._admit(adapter)
        ticket, admitted = next(self._tickets), asyncio.get_running_loop().create_future()
        self._requests[ticket] = _Request(adapter, admitted)
        self._follow(self._residency.ask(ticket, adapter.engine_id, priority))
        try:
            await admitted
            yield
        finally:
            # Nothing is awaited here, so that not even a second cancellation can lose the slot.
            self._requests.pop(ticket, None)
            self._follow(self._residency.done(ticket))
            self._settled(adapter.engine_id)

    def prefetch(self, adapter: Adapter) -> bool:
        """Have the adapter loaded to memory, if that disturbs nobody; whether it is there or on its way."""
        self._admit(adapter)
        self._follow(self._residency.prefetch(adapter.engine_id))
        there = adapter.engine_id in self._residency.in_memory
        self._settled(adapter.engine_id)
        return there

    def retire(self, adapter: Adapter) -> int:
        """Let in nobody for this adapter any more, until it is evicted; who waits is sent away. How many."""
        self._retired.add(adapter.engine_id)
        tickets = self._residency.retire(adapter.engine_id)
        self._refuse(tickets, AdapterGoneError("the adapter was deleted while the request waited for it"))
        return len(tickets)

    async def evict(self, adapter: Adapter) -> tuple[bool, bool]:
        """Take the adapter out of the engine once nobody asks it; whether it was in a slot, and in memory.

        Raises:
            EngineUnavailableError: the engine is gone.
        """
        engine_id = adapter.engine_id
        while self._closed is None and self._residency.busy(engine_id):
            waiter = asyncio.get_running_loop().create_future()
            self._draining.setdefault(engine_id, []).append(waiter)
            await waiter
        if self._closed is not None:
            raise self._closed
        in_slot, in_memory, decision = self._residency.forget(engine_id)
        # In the order of the moves: one that is decided from here on may take the room that it leaves.
        forgetting = self._chained(self._forget(adapter, self._last), f"forget {adapter.name}")
        self._retired.discard(engine_id)
        self._follow(decision)
        self._settled(engine_id)
        # Whoever asked for it may go away; it is done nevertheless.
        await asyncio.wait([forgetting])
        if self._closed is not None:
            raise self._closed
        forgetting.result()
        return in_slot, in_memory

    def close(self, error: EngineUnavailableError) -> None:
        """Send everybody away: the engine is gone, and with it what it held."""
        self._closed = error
        for ticket in list(self._requests):
            self._refuse((ticket,), error)
        for task in self._moving:
            task.cancel()
        for engine_id in list(self._draining):
            self._release(engine_id)

    @property
    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in slots, or on their way there."""
        return frozenset(self._adapters[one].name for one in self._residency.in_slots)

    @property
    def counts(self) -> Counts:
        """How things stand."""
        return self._residency.counts

    def difference(self, in_slots: Collection[int], in_memory: Collection[int]) -> str | None:
        """How the books differ from what the engine holds; None if they agree, or while a move is under way.

        IntegrityError when they do not even agree with themselves.
        """
        self._residency.check()
        expected = set(self._residency.in_slots), set(self._residency.in_memory)
        if self._moving or expected == (set(in_slots), set(in_memory)):
            return None
        return f"slots {sorted(in_slots)}, memory {sorted(in_memory)}, where {expected} was expected"

    # --- carrying out ----------------------------------------------------------------------------------

    def _admit(self, adapter: Adapter) -> None:
        if self._closed is not None:
            raise self._closed
        if adapter.engine_id in self._retired:
            raise AdapterGoneError("the adapter was deleted")
        known = self._adapters.setdefault(adapter.engine_id, adapter)
        if known != adapter:
            raise ValueError(
                f"adapter id {adapter.engine_id} belongs to {known.name} in {known.path}, not to "
                f"{adapter.name} in {adapter.path}: give every adapter an id, a name and a path of its own"
            )

    def _follow(self, decision: Decision) -> None:
        if self._closed is not None:
            return
        for move in decision.moves:
            adapter = self._adapters[move.adapter]
            task = self._chained(self._carry_out(move, adapter, self._last), f"move {adapter.name}")
            task.add_done_callback(partial(self._made, move))
        for ticket in decision.admitted:
            request = self._requests.get(ticket)
            if request is not None and not request.admitted.done():
                request.admitted.set_result(None)

    def _chained(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._last = task = asyncio.create_task(work, name=name)
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
        return task

    async def _forget(self, adapter: Adapter, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._mover.forget(adapter)

    async def _carry_out(self, move: Move, adapter: Adapter, before: asyncio.Task[None] | None) -> None:
        refusal: BaseException | None = None
        if move.load:
            (refusal,) = await asyncio.gather(self._mover.prepare(adapter), return_exceptions=True)
        if before is not None:
            await asyncio.wait([before])
        if refusal is None:
            await self._mover.move(move, adapter)
            return
        # The books have given the room away already.
        await self._mover.move(replace(move, load=False, place=False), adapter)
        raise refusal

    def _made(self, move: Move, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if self._closed is not None:
            return
        if error is None:
            self._follow(self._residency.moved(move))
        else:
            tickets, decision = self._residency.failed(move)
            self._refuse(tickets, error)
            self._follow(decision)
        for engine_id in (move.adapter, *move.drop):
            self._settled(engine_id)

    def _refuse(self, tickets: tuple[int, ...], error: BaseException) -> None:
        for ticket in tickets:
            request = self._requests.get(ticket)
            if request is not None and not request.admitted.done():
                request.admitted.set_exception(error)

    def _settled(self, engine_id: int) -> None:
        """Something of this adapter has ended: tell those who wait for that, and forget what is nowhere."""
        if self._residency.busy(engine_id):
            return
        self._release(engine_id)
        if engine_id not in self._residency.in_memory:
            self._adapters.pop(engine_id, None)

    def _release(self, engine_id: int) -> None:
        for waiter in self._draining.pop(engine_id, ()):
            if not waiter.done():
                waiter.set_result(None)
