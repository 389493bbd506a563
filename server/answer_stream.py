"""Answers as server-sent events: what a refusal looks like before the first piece, and after it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
import structlog
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.disconnect import unless_disconnected
from server.problems import PROBLEMS, error_body

_log = structlog.get_logger(__name__)

#: OpenAI's; some clients look for nothing else.
_SEPARATOR = "\n"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wire(Generic[T]):
    """How pieces, errors and the end of a stream look as events. An `end` tells whole from cut ones."""

    piece: Callable[[T], ServerSentEvent]
    error: Callable[[dict[str, Any]], ServerSentEvent]
    end: ServerSentEvent | None = None


def event(data: dict[str, Any], kind: str | None = None) -> ServerSentEvent:
    """An event whose data are one line, whatever a client takes for a line's end."""
    return ServerSentEvent(json.dumps(data, separators=(",", ":")), event=kind, sep=_SEPARATOR)


#: As OpenAI streams: chunks without a name.
OPENAI: Wire[dict[str, Any]] = Wire(piece=event, error=event, end=ServerSentEvent("[DONE]", sep=_SEPARATOR))


async def streamed(request: Request, pieces: AsyncGenerator[T, None], wire: Wire[T]) -> EventSourceResponse:
    """A response of the pieces, begun once the first is there: what is refused before has its own status.

    When the client goes away the pieces are closed. The request's body must have been read.
    """

    async def begun() -> T:
        return await anext(pieces)

    first = await unless_disconnected(request, begun())
    return _Streamed(pieces, _events(first, pieces, wire))


class _Streamed(EventSourceResponse):
    """Closes its pieces however it ends, also before it has begun."""

    def __init__(
        self, pieces: AsyncGenerator[Any, None], events: AsyncGenerator[ServerSentEvent, None]
    ) -> None:
        super().__init__(events, sep=_SEPARATOR)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._pieces.aclose()


async def _events(
    first: T, pieces: AsyncGenerator[T, None], wire: Wire[T]
) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(pieces):
        try:
            yield wire.piece(first)
            async for piece in pieces:
                yield wire.piece(piece)
        except tuple(PROBLEMS) as error:
            _log.warning("stream cut short", error=type(error).__name__)
            yield wire.error(error_body(error))
            return
    if wire.end is not None:
        yield wire.end
