"""A document's events as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import anyio
import structlog
from redis.exceptions import RedisError
from sse_starlette import ServerSentEvent

from km_registry.types import Action, Event, Principal
from server.errors import RevokedError
from server.revocations import claim_of
from server.state import AppState

_log = structlog.get_logger(__name__)


async def event_stream(
    state: AppState, principal: Principal, document_id: str, after: int
) -> AsyncIterator[ServerSentEvent]:
    """Events after id `after` as `followed` has them.

    When Redis goes away the stream ends; the client comes back with the id of the last event it saw.
    """
    async with aclosing(followed(state, principal, document_id, after)) as events:
        async for event in events:
            yield ServerSentEvent(json.dumps(event.data), event=event.kind, id=str(event.id))


async def followed(
    state: AppState, principal: Principal, document_id: str, after: int
) -> AsyncGenerator[Event, None]:
    """Events after id `after`, until the last one, until the principal may no longer read the document, until
    Redis goes away, or until the server stops."""
    told = state.follow(document_id, after)
    assert isinstance(told, AsyncGenerator)
    source = state.revocations.while_standing(claim_of(principal, Action.READ, document_id), told)
    closing = asyncio.create_task(state.closing.wait())
    try:
        while (event := await _next(source, closing)) is not None:
            yield event
    except RevokedError:
        _log.info("event stream cut: it was revoked", document_id=document_id, user_id=principal.user_id)
    except RedisError as error:
        _log.warning("event stream ended", document_id=document_id, error=type(error).__name__)
    finally:
        closing.cancel()
        # A cancelled stream is cancelled again at every await, and the subscription has to be given up.
        with anyio.CancelScope(shield=True):
            await source.aclose()


async def _next(source: AsyncGenerator[Event, None], closing: asyncio.Task[object]) -> Event | None:
    following = asyncio.ensure_future(anext(source, None))
    try:
        await asyncio.wait({following, closing}, return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None
    finally:
        if not following.done():
            following.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({following})
