"""Notes of what is asked: made before the answer is told, together where they come together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import OperationalError

from km_registry.types import Action, Claim, Principal
from server.asked_notes import AskedNotes


def claim(number: int) -> Claim:
    return Claim(Principal("usr_a"), "key_a", Action.ASK, f"doc_{number}")


class Registry:
    """Takes notes when it is let."""

    def __init__(self) -> None:
        self.people = self
        self.transactions: list[list[str | None]] = []
        self.let = threading.Event()
        self.begun = threading.Event()
        self.failure: Exception | None = None

    def note_asked(self, claims: Sequence[Claim]) -> None:
        self.begun.set()
        assert self.let.wait(10)
        if self.failure is not None:
            raise self.failure
        self.transactions.append([one.document_id for one in claims])


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def notes(registry: Registry) -> AskedNotes:
    return AskedNotes(registry)  # type: ignore[arg-type]


async def test_what_comes_while_one_is_written_is_written_together(
    registry: Registry, notes: AskedNotes
) -> None:
    first = notes.begin(claim(0))
    await asyncio.to_thread(registry.begun.wait, 10)
    others = [notes.begin(claim(number)) for number in (1, 2, 3)]
    assert not first.done()
    registry.let.set()
    await asyncio.gather(first, *others)
    assert registry.transactions == [["doc_0"], ["doc_1", "doc_2", "doc_3"]]


async def test_whoever_waits_is_told_that_it_could_not_be_noted(
    registry: Registry, notes: AskedNotes
) -> None:
    registry.failure = OperationalError("INSERT", None, Exception("disk full"))
    registry.let.set()
    with pytest.raises(OperationalError, match="disk full"):
        await notes.begin(claim(0))
    registry.failure = None
    await notes.begin(claim(1))
    assert registry.transactions == [["doc_1"]]


async def test_one_that_nobody_waits_for_any_more_is_made_all_the_same(
    registry: Registry, notes: AskedNotes
) -> None:
    gone, other = notes.begin(claim(0)), notes.begin(claim(1))
    gone.cancel()
    registry.let.set()
    await other
    assert registry.transactions == [["doc_0", "doc_1"]]
