"""What was asked is in the audit log before an answer to it leaves, and no answer waits longer for that."""

from __future__ import annotations

import asyncio

from km_registry.registry import Registry
from km_registry.types import Claim


class AskedNotes:
    """Writes notes while the answers are being generated, those that come together in one transaction.

    A transaction costs a write to disk that takes longer than all else of a note. For one event loop.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: list[tuple[Claim, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def begin(self, claim: Claim) -> asyncio.Future[None]:
        """Begin to note that the claim's document is asked. To be awaited before anything of it is told.

        The future raises what kept it from being noted, an SQLAlchemyError. Nobody need await it: the note
        is made all the same.
        """
        noted = asyncio.get_running_loop().create_future()
        noted.add_done_callback(_looked_at)
        self._waiting.append((claim, noted))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="asked notes")
        return noted

    async def _write(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                noting = asyncio.to_thread(self._registry.people.note_asked, [claim for claim, _ in together])
                (failure,) = await asyncio.gather(noting, return_exceptions=True)
                for noted in [noted for _, noted in together if not noted.done()]:
                    noted.set_result(None) if failure is None else noted.set_exception(failure)
        finally:
            self._writing = None


def _looked_at(noted: asyncio.Future[None]) -> None:
    """So that asyncio does not complain of a failure that nobody awaits any more."""
    if not noted.cancelled():
        noted.exception()
