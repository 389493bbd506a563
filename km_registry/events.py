"""Telling followers that a document's job moved on. The event rows are the truth; notices only wake.

A notice carries no content. A follower subscribes first, then replays the rows, so that nothing that
happens in between is lost, then reads the rows again at every notice.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import structlog
from redis import Redis, RedisError
from redis.asyncio import Redis as AsyncRedis

from km_registry.errors import NotFoundError
from km_registry.types import Event, Job

_log = structlog.get_logger(__name__)

#: A notice can be lost (Redis restarting, a publisher that could not reach it); rows are never.
_REREAD_SECONDS = 15.0
#: Between two readings while there are no notices.
_AWAY_SECONDS = 1.0

Wait = Callable[[], Awaitable[None]]


class Notifier(Protocol):
    """Wakes the followers of a document."""

    def notify(self, document_id: str, event_id: int) -> None:
        """Say that the event is committed. Never raises: the event has happened either way."""
        ...


class EventSource(Protocol):
    """What following needs of the registry."""

    def events_after(self, document_id: str, event_id: int = 0) -> list[Event]:
        """Events of the document after `event_id`, oldest first."""
        ...

    def job_of(self, document_id: str) -> Job:
        """The document's latest job; NotFoundError when there is none."""
        ...


def channel(document_id: str) -> str:
    """The Redis channel on which the document's events are announced."""
    return f"km:events:{document_id}"


class NullNotifier:
    """Wakes nobody."""

    def notify(self, document_id: str, event_id: int) -> None:
        """Do nothing."""


class RedisNotifier:
    """Publishes the event's id on the document's channel."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def notify(self, document_id: str, event_id: int) -> None:
        """Publish; when Redis cannot be reached, followers find the event at their next reading."""
        try:
            self._redis.publish(channel(document_id), event_id)
        except RedisError as error:
            _log.warning("notice not sent", document_id=document_id, event_id=event_id, error=str(error))


class MemoryNotifier:
    """Notifier and bus in one process, for unit tests and single-process use; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakers: dict[str, list[Callable[[], None]]] = {}

    def notify(self, document_id: str, event_id: int) -> None:  # noqa: ARG002
        """Wake the document's followers, in whichever event loop they run."""
        with self._lock:
            for wake in self._wakers.get(document_id, ()):
                wake()

    def listeners(self, document_id: str) -> int:
        """How many follow the document at present."""
        with self._lock:
            return len(self._wakers.get(document_id, ()))

    @asynccontextmanager
    async def subscription(self, document_id: str) -> AsyncIterator[Wait]:
        """Within it, every notice ends one wait."""
        loop, noticed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(noticed.set)

        async def wait() -> None:
            await noticed.wait()
            noticed.clear()

        with self._lock:
            self._wakers.setdefault(document_id, []).append(wake)
        try:
            yield wait
        finally:
            with self._lock:
                self._wakers[document_id].remove(wake)
                if not self._wakers[document_id]:
                    del self._wakers[document_id]


@asynccontextmanager
async def _redis_subscription(redis: AsyncRedis, document_id: str) -> AsyncIterator[Wait]:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel(document_id))
        # Sending SUBSCRIBE is not being subscribed: no notice is missed only from the confirmation on.
        while (message := await pubsub.get_message(timeout=None)) is None or message["type"] != "subscribe":
            pass

        async def wait() -> None:
            try:
                await pubsub.get_message(ignore_subscribe_messages=True, timeout=_REREAD_SECONDS)
            except RedisError as error:
                # It restarts, or another one takes its place. The rows are read meanwhile, and with the next
                # connection the subscription is made again.
                _log.info("no notices for a moment", document_id=document_id, error=type(error).__name__)
                await asyncio.sleep(_AWAY_SECONDS)

        yield wait


def _subscription(bus: AsyncRedis | MemoryNotifier, document_id: str) -> AbstractAsyncContextManager[Wait]:
    if isinstance(bus, MemoryNotifier):
        return bus.subscription(document_id)
    return _redis_subscription(bus, document_id)


async def follow(
    registry: EventSource, bus: AsyncRedis | MemoryNotifier, document_id: str, after: int = 0
) -> AsyncGenerator[Event, None]:
    """Yield the document's events after id `after`: first those that have happened, then each as it happens.

    Ends when the document's latest job is finished and all is told, or when the document is gone.
    Whether the caller may see them is the caller's business. Who leaves early closes it (`aclosing`).
    """
    async with _subscription(bus, document_id) as wait:
        while True:
            # The state is read before the events: a job read as finished has its last event among them.
            finished = await asyncio.to_thread(_finished, registry, document_id)
            events = await asyncio.to_thread(registry.events_after, document_id, after)
            for event in events:
                after = event.id
                yield event
            if events:
                continue
            if finished:
                return
            await wait()


def _finished(registry: EventSource, document_id: str) -> bool:
    try:
        return registry.job_of(document_id).state.finished
    except NotFoundError:
        return True
