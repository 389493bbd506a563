"""What rests on a claim goes on while that stands, and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy.exc import OperationalError

from km_registry.registry import Registry
from km_registry.types import Action, Claim, Principal
from server.errors import RevokedError
from server.revocations import Revocations, claim_of


@pytest.fixture
def revocations(registry: Registry) -> Revocations:
    return Revocations(registry, every_s=0.01)


@pytest.fixture
def claim(registry: Registry, owner: Principal) -> Claim:
    document, _, _ = registry.add_document(owner, "Kaldvik", "The lighthouse was lit in 1871.")
    return claim_of(owner, Action.ASK, document.id)


def _end(registry: Registry, claim: Claim) -> None:
    assert claim.document_id is not None
    registry.tombstone(claim.principal, claim.document_id)
    registry.complete_deletion(claim.document_id, registry.purge(claim.document_id))


class Pieces:
    """Numbers as they are let through; knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            while (number := await self.queue.get()) is not None:
                yield number
        finally:
            self.closed = True


async def test_work_is_done_while_the_claim_stands(revocations: Revocations, claim: Claim) -> None:
    async def work() -> int:
        await asyncio.sleep(0.05)
        return 7

    assert await revocations.unless_revoked(claim, work()) == 7


async def test_what_work_raises_is_raised(revocations: Revocations, claim: Claim) -> None:
    async def work() -> int:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await revocations.unless_revoked(claim, work())


async def test_work_is_cancelled_when_the_claim_falls(
    revocations: Revocations, claim: Claim, registry: Registry
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    working = asyncio.create_task(revocations.unless_revoked(claim, work()))
    await begun.wait()
    await asyncio.to_thread(_end, registry, claim)
    with pytest.raises(RevokedError):
        await asyncio.wait_for(working, 10)
    assert ended.is_set()


async def test_pieces_come_until_the_claim_falls(
    revocations: Revocations, claim: Claim, registry: Registry
) -> None:
    pieces = Pieces()
    stream = revocations.while_standing(claim, pieces.read())
    for number in (0, 1):
        pieces.queue.put_nowait(number)
        assert await anext(stream) == number
    await asyncio.to_thread(_end, registry, claim)
    with pytest.raises(RevokedError):
        await asyncio.wait_for(anext(stream), 10)
    assert pieces.closed


async def test_pieces_end_by_themselves(revocations: Revocations, claim: Claim) -> None:
    pieces = Pieces()
    for number in (0, None):
        pieces.queue.put_nowait(number)
    assert [number async for number in revocations.while_standing(claim, pieces.read())] == [0]
    assert pieces.closed


async def test_closing_closes_the_pieces_and_ends_the_watch(revocations: Revocations, claim: Claim) -> None:
    before = asyncio.all_tasks()
    pieces = Pieces()
    stream = revocations.while_standing(claim, pieces.read())
    pieces.queue.put_nowait(0)
    await anext(stream)
    await stream.aclose()
    assert pieces.closed
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_database_that_is_away_ends_nothing(
    revocations: Revocations, claim: Claim, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def away(claims: set[Claim]) -> set[Claim]:
        loop.call_soon_threadsafe(asked.set)
        raise OperationalError("select", {}, Exception("away"))

    with monkeypatch.context() as patched, revocations.watching(claim) as revoked:
        patched.setattr(registry.people, "standing", away)
        await asyncio.wait_for(asked.wait(), 10)
        assert not revoked.is_set()
        patched.undo()
        await asyncio.to_thread(_end, registry, claim)
        await asyncio.wait_for(revoked.wait(), 10)
