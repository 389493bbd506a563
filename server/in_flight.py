"""Which documents are being asked right now, so that a deletion can wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Count:
    """Answers that began before the same drain, if there was one. Later ones are counted anew."""

    running: int = 0
    is_closed: bool = False
    none_left: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """Counts the answers in flight for each document. For one event loop."""

    def __init__(self) -> None:
        self._counts: dict[str, list[_Count]] = {}

    @contextmanager
    def answering(self, document_id: str) -> Iterator[None]:
        """Count one answer while the block runs.

        Enter before asking whether the document may be read: then every answer that was allowed before
        a tombstone is counted when the deletion that set it drains.
        """
        counts = self._counts.setdefault(document_id, [])
        if not counts or counts[-1].is_closed:
            counts.append(_Count())
        count = counts[-1]
        count.running += 1
        try:
            yield
        finally:
            # Nothing is awaited here, so that not even a second cancellation can lose the count.
            count.running -= 1
            if not count.running:
                count.none_left.set()
                counts.remove(count)
                if not counts:
                    del self._counts[document_id]

    async def drain(self, document_id: str) -> None:
        """Wait for every answer in flight now, whoever else waits for it. Later ones are not waited for: they
        already get 404."""
        for count in list(self._counts.get(document_id, ())):
            count.is_closed = True
            await count.none_left.wait()

    async def drain_all(self) -> None:
        """Wait for every answer of any document that is in flight now."""
        for document_id in list(self._counts):
            await self.drain(document_id)

    @property
    def documents(self) -> frozenset[str]:
        """Which documents are being asked."""
        return frozenset(self._counts)

    @property
    def waited_for(self) -> frozenset[str]:
        """Of which of them somebody waits for the answers."""
        return frozenset(one for one, counts in self._counts.items() if counts[0].is_closed)

    def __contains__(self, document_id: str) -> bool:
        """Whether the document is being asked."""
        return document_id in self._counts

    def __len__(self) -> int:
        """How many documents are being asked."""
        return len(self._counts)
