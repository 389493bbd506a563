"""What goes on for a caller ends once they may no longer have it: streams, and answers being written.

Whether a claim still stands is asked of the registry, for all that goes on at once, every second: so it does
not matter who took a grant, a key or a membership away, by which process, or whether a key has just expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from km_registry.registry import Registry
from km_registry.types import Action, Claim, Principal
from server.errors import RevokedError

_log = structlog.get_logger(__name__)

#: Half of the 2 s within which a stream is promised to end.
CHECK_EVERY_S = 1.0

T = TypeVar("T")


def claim_of(principal: Principal, action: Action, document_id: str | None) -> Claim:
    """What a request rests on: the key that it came with, and the principal's grants on the document."""
    return Claim(principal, principal.key_id, action, document_id)


class Revocations:
    """Watches the claims that something rests on. One for each server; for one event loop."""

    def __init__(self, registry: Registry, *, every_s: float = CHECK_EVERY_S) -> None:
        self._registry = registry
        self._every_s = every_s
        self._watched: dict[Claim, list[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, claim: Claim) -> Iterator[asyncio.Event]:
        """Within it, the event is set once the claim no longer stands."""
        revoked = asyncio.Event()
        self._watched.setdefault(claim, []).append(revoked)
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="revocations")
        try:
            yield revoked
        finally:
            watchers = self._watched.get(claim, [])
            if revoked in watchers:
                watchers.remove(revoked)
            if not watchers:
                self._watched.pop(claim, None)
            if not self._watched and self._task is not None:
                self._task.cancel()
                self._task = None

    async def unless_revoked(self, claim: Claim, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the claim no longer stands: RevokedError then."""
        with self.watching(claim) as revoked:
            return await _unless(revoked, work)

    async def while_standing(self, claim: Claim, pieces: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The pieces, until the claim no longer stands: RevokedError then. Closing it closes them."""
        with self.watching(claim) as revoked:
            try:
                while (found := await _unless(revoked, _next(pieces))) is not None:
                    yield found[0]
            finally:
                # A cancelled stream is cancelled again at every await, and what it reads has to be given up.
                with anyio.CancelScope(shield=True):
                    await pieces.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            claims = set(self._watched)
            try:
                standing = await asyncio.to_thread(self._registry.people.standing, claims)
            except SQLAlchemyError as error:
                # While the database is away nobody can revoke anything either.
                _log.warning("claims not checked; will try again", error=type(error).__name__)
                continue
            for claim in claims - standing:
                for revoked in self._watched.pop(claim, ()):
                    revoked.set()


async def _next(pieces: AsyncGenerator[T, None]) -> tuple[T] | None:
    """The next piece, wrapped to tell any of them from the end."""
    async for piece in pieces:
        return (piece,)
    return None


async def _unless(revoked: asyncio.Event, work: Awaitable[T]) -> T:
    working, cut = asyncio.ensure_future(work), asyncio.create_task(revoked.wait())
    try:
        await asyncio.wait({working, cut}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RevokedError
        return working.result()
    finally:
        working.cancel()
        cut.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(working, cut, return_exceptions=True)
