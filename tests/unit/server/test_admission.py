"""Requests are let in when their adapter has been moved; what fails, is cancelled or closed hangs nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.engine.admission import Admission
from server.engine.base import Adapter, AdapterGoneError, AdapterLoadError, EngineUnavailableError
from server.engine.residency import Move

A, B, C = (Adapter(f"km_{number}", number, Path(f"/km/{number}")) for number in (1, 2, 3))


class RecordingMover:
    """Records what it is told. Adapters in `damaged` cannot be loaded; `hold` keeps moves from being made."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.damaged: set[str] = set()
        self.unloadable: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()

    async def prepare(self, adapter: Adapter) -> None:
        if adapter.name in self.damaged:
            raise AdapterLoadError(adapter.name)

    async def move(self, move: Move, adapter: Adapter) -> None:
        await self.go.wait()
        for engine_id in move.vacate:
            self.told.append(f"vacate {engine_id}")
        if move.load and adapter.name in self.unloadable:
            raise AdapterLoadError(adapter.name)
        if move.load:
            self.told.append(f"load {move.adapter}")
        if move.place:
            self.told.append(f"place {move.adapter}")

    async def forget(self, adapter: Adapter) -> None:
        self.told.append(f"forget {adapter.engine_id}")


@pytest.fixture
def mover() -> RecordingMover:
    return RecordingMover()


@pytest.fixture
def admission(mover: RecordingMover) -> Admission:
    """One slot, two places."""
    return Admission(mover, slots=1, places=2)


class Asking:
    """A request that runs until it is told to end."""

    def __init__(self, admission: Admission, adapter: Adapter) -> None:
        self.running, self.end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, adapter))

    async def _run(self, admission: Admission, adapter: Adapter) -> None:
        async with admission.holding(adapter):
            self.running.set()
            await self.end.wait()

    async def ended(self) -> None:
        self.end.set()
        await asyncio.wait_for(self.task, 5)


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_next_is_let_in_when_the_slot_is_free(admission: Admission, mover: RecordingMover) -> None:
    first, second = Asking(admission, A), Asking(admission, B)
    await asyncio.wait_for(first.running.wait(), 5)
    await turns()
    assert not second.running.is_set()
    await first.ended()
    await asyncio.wait_for(second.running.wait(), 5)
    assert mover.told == ["load 1", "place 1", "vacate 1", "load 2", "place 2"]
    await second.ended()
    assert admission.counts.pinned == 0
    assert admission.difference({2}, {1, 2}) is None


async def test_files_that_are_refused_leave_the_room_to_others(
    admission: Admission, mover: RecordingMover
) -> None:
    await Asking(admission, A).ended()
    mover.damaged.add(B.name)
    with pytest.raises(AdapterLoadError):
        await Asking(admission, B).ended()
    # The books gave A's slot away, so A left it.
    assert mover.told == ["load 1", "place 1", "vacate 1"]
    assert admission.counts.free == 1
    assert admission.difference(set(), {1}) is None


async def test_all_who_wait_for_a_load_that_fails_are_told(
    admission: Admission, mover: RecordingMover
) -> None:
    mover.unloadable.add(A.name)
    mover.go.clear()
    asking = [Asking(admission, A), Asking(admission, A), Asking(admission, B)]
    await turns()
    mover.go.set()
    for one in asking[:2]:
        with pytest.raises(AdapterLoadError):
            await one.ended()
    await asking[2].ended()


async def test_a_request_that_is_cancelled_while_it_waits(admission: Admission) -> None:
    first, second, third = (Asking(admission, one) for one in (A, B, C))
    await asyncio.wait_for(first.running.wait(), 5)
    await turns()
    second.task.cancel()
    await first.ended()
    await third.ended()
    assert second.task.cancelled()
    assert admission.counts.loads == 2


async def test_eviction_waits_and_comes_after_the_moves(admission: Admission, mover: RecordingMover) -> None:
    asking = Asking(admission, A)
    await asyncio.wait_for(asking.running.wait(), 5)
    evicting = asyncio.create_task(admission.evict(A))
    await turns()
    assert not evicting.done()
    await asking.ended()
    assert await asyncio.wait_for(evicting, 5) == (True, True)
    assert mover.told[-1] == "forget 1"
    assert await admission.evict(A) == (False, False)


async def test_retired_until_evicted(admission: Admission) -> None:
    first, second = Asking(admission, A), Asking(admission, B)
    await asyncio.wait_for(first.running.wait(), 5)
    await turns()
    assert admission.retire(B) == 1
    with pytest.raises(AdapterGoneError):
        await second.ended()
    with pytest.raises(AdapterGoneError):
        await Asking(admission, B).ended()
    with pytest.raises(AdapterGoneError):
        admission.prefetch(B)
    await first.ended()
    await admission.evict(B)
    await Asking(admission, B).ended()


async def test_prefetching(admission: Admission, mover: RecordingMover) -> None:
    assert admission.prefetch(A)
    await Asking(admission, A).ended()
    assert mover.told == ["load 1", "load 1", "place 1"] or mover.told == ["load 1", "place 1"]
    mover.damaged.add(B.name)
    assert admission.prefetch(B)
    await turns()
    assert admission.difference({1}, {1}) is None


async def test_an_id_is_for_one_adapter(admission: Admission) -> None:
    asking = Asking(admission, A)
    await asyncio.wait_for(asking.running.wait(), 5)
    with pytest.raises(ValueError, match="id 1 belongs to km_1"):
        await Asking(admission, Adapter("km_9", 1, A.path)).ended()
    await asking.ended()


async def test_closing_sends_everybody_away(admission: Admission, mover: RecordingMover) -> None:
    mover.go.clear()
    asking = [Asking(admission, A), Asking(admission, B)]
    evicting = asyncio.create_task(admission.evict(A))
    await turns()
    admission.close(EngineUnavailableError("gone"))
    for task in (*(one.task for one in asking), evicting):
        with pytest.raises(EngineUnavailableError, match="gone"):
            await asyncio.wait_for(task, 5)
    with pytest.raises(EngineUnavailableError, match="gone"):
        await Asking(admission, A).ended()


async def test_the_difference_is_told(admission: Admission) -> None:
    await Asking(admission, A).ended()
    assert admission.difference({1}, {1}) is None
    assert "1" in (admission.difference(set(), {1}) or "")
