"""Which documents are being asked right now, so that a deletion can wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Count:
    running: int = 0
    none_left: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """Counts the answers in flight for each document. For one event loop."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    @contextmanager
    def answering(self, document_id: str) -> Iterator[None]:
        """Count one answer while the block runs.

        Enter before asking whether the document may be read: then every answer that was allowed before
        a tombstone is counted when the deletion that set it drains.
        """
        count = self._counts.setdefault(document_id, _Count())
        count.running += 1
        try:
            yield
        finally:
            # Nothing is awaited here, so that not even a second cancellation can lose the count.
            count.running -= 1
            if not count.running:
                count.none_left.set()
                if self._counts.get(document_id) is count:
                    del self._counts[document_id]

    async def drain(self, document_id: str) -> None:
        """Wait for every answer in flight now. Later ones are not waited for: they already get 404."""
        count = self._counts.pop(document_id, None)
        if count is not None:
            await count.none_left.wait()

    async def drain_all(self) -> None:
        """Wait for every answer of any document that is in flight now."""
        for document_id in list(self._counts):
            await self.drain(document_id)

    def __contains__(self, document_id: str) -> bool:
        """Whether the document is being asked, unless that is being drained."""
        return document_id in self._counts

    def __len__(self) -> int:
        """How many documents are being asked."""
        return len(self._counts)
