"""Counting answers in flight."""

from __future__ import annotations

import asyncio

from server.in_flight import InFlight


async def test_nothing_in_flight() -> None:
    await InFlight().drain("doc_a")


async def test_whoever_drains_waits_for_all() -> None:
    in_flight = InFlight()
    with in_flight.answering("doc_a"):
        draining = [asyncio.create_task(in_flight.drain("doc_a")) for _ in range(2)]
        await asyncio.sleep(0)
        assert in_flight.waited_for == in_flight.documents == {"doc_a"}
        with in_flight.answering("doc_a"):
            draining.append(asyncio.create_task(in_flight.drain("doc_a")))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in draining] == [False] * 3
    await asyncio.wait_for(asyncio.gather(*draining), 5)
    assert in_flight.documents == set()


async def test_drain_waits_for_those_before_it_only() -> None:
    in_flight = InFlight()
    first, second = in_flight.answering("doc_a"), in_flight.answering("doc_a")
    first.__enter__()
    second.__enter__()
    draining = asyncio.create_task(in_flight.drain("doc_a"))
    await asyncio.sleep(0)
    with in_flight.answering("doc_a"):
        first.__exit__(None, None, None)
        await asyncio.sleep(0)
        assert not draining.done()
        second.__exit__(None, None, None)
        await asyncio.wait_for(draining, 5)
        assert len(in_flight) == 1
    assert len(in_flight) == 0
