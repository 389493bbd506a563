"""Background work that runs once per key, whoever asks for it and however often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import structlog

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")

_log = structlog.get_logger(__name__)


class Once(Generic[K, R]):
    """Work of one sort, one task per key at a time. All methods belong to one event loop.

    It goes on when those who wait for it go away. What it raises is logged, by its type alone, and raised to
    those who wait.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._running: dict[K, asyncio.Task[R]] = {}

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> asyncio.Task[R]:
        """The task of this key: the one that is running, else a new one that does `work`."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(work(), name=f"{self._what} {key}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def done(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """What the work gives, begun unless it is running. Cancelling the caller leaves it running."""
        return await asyncio.shield(self.begin(key, work))

    async def idle(self, key: K) -> None:
        """Wait until nothing runs for this key that does now, however it ends."""
        if task := self._running.get(key):
            await asyncio.wait([task])

    async def settled(self) -> None:
        """Wait for all that is running, however it ends."""
        if self._running:
            await asyncio.wait(self._running.values())

    def keys(self) -> list[K]:
        """What is running."""
        return list(self._running)

    def _ended(self, key: K, task: asyncio.Task[R]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("interrupted", work=self._what, key=str(key), error=type(error).__name__)
