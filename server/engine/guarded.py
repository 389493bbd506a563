"""An engine that takes no more than it can serve: a bound on users' requests, and on the time of each."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from server.engine.base import (
    PRIORITY_USER,
    Adapter,
    Delta,
    Engine,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
)

#: How much the newest request counts in the mean time of requests.
_NEWEST = 0.2
_RETRY_AFTER_S = (1, 60)


class EngineBusyError(EngineUnavailableError):
    """More requests wait than this server lets. `retry_after_s` says when to ask again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerBusyError(EngineBusyError):
    """More requests of one user wait than this server lets. `retry_after_s` says when to ask again."""


class RequestTimeoutError(EngineUnavailableError):
    """The request took longer than this server lets."""


class GuardedEngine:
    """Implements server.engine.base.Engine over another one, whose life it leaves alone.

    `refuse` raises EngineUnavailableError while nothing may be answered from documents: it is asked before a
    request that rests on one is let in, and before each piece of its answer is let out.

    Synthetic text is neither counted nor timed: it runs behind users' requests, and the trainer bounds it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_requests: int,
        max_requests_per_user: int,
        timeout_s: float,
        refuse: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._refuse = refuse
        self._max_requests = max_requests
        self._max_per_user = max_requests_per_user
        self._timeout_s = timeout_s
        self._mean_s = 1.0
        #: Users' requests that wait or run, and those of each user.
        self.in_flight = 0
        self._of_caller: Counter[str | None] = Counter()
        #: Requests that were refused because too many were there, and that took too long.
        self.refused = 0
        self.timed_out = 0

    async def start(self) -> None:
        """Start the engine."""
        await self._engine.start()

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end. Raises EngineBusyError and RequestTimeoutError too."""
        with self._admitted(request) as deadline, self._timed():
            async with asyncio.timeout_at(deadline):
                found = await self._engine.generate(request)
            self._refuse_when_closed(request)
            return found

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Run one request, piece by piece. Raises like `generate`."""
        with self._admitted(request) as deadline:
            async with aclosing(self._engine.stream(request)) as stream:
                # Not one timeout around all: whoever reads may do so in several tasks.
                while (delta := await self._next(stream, deadline)) is not None:
                    self._refuse_when_closed(request)
                    yield delta

    async def prefetch(self, adapter: Adapter) -> bool:
        """Begin to load the adapter to memory."""
        return await self._engine.prefetch(adapter)

    async def retire(self, adapter: Adapter) -> int:
        """Let in no more requests for the adapter."""
        return await self._engine.retire(adapter)

    async def evict(self, adapter: Adapter) -> Eviction:
        """Remove the adapter from the engine."""
        return await self._engine.evict(adapter)

    async def status(self) -> EngineStatus:
        """What the engine is doing."""
        return await self._engine.status()

    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in slots."""
        return self._engine.in_slots()

    async def check(self) -> None:
        """Raise EngineUnavailableError unless the engine is alive."""
        await self._engine.check()

    async def close(self) -> None:
        """Stop the engine."""
        await self._engine.close()

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._engine.max_model_len

    async def _next(self, stream: AsyncGenerator[Delta, None], deadline: float | None) -> Delta | None:
        with self._timed():
            async with asyncio.timeout_at(deadline):
                return await anext(stream, None)

    @contextmanager
    def _admitted(self, request: GenerationRequest) -> Iterator[float | None]:
        """Counts a user's request while the block runs; yields the loop's time at which it must be over."""
        self._refuse_when_closed(request)
        if request.priority > PRIORITY_USER:
            yield None
            return
        self._refuse_when_full(request.caller)
        began = time.perf_counter()
        self.in_flight += 1
        self._of_caller[request.caller] += 1
        try:
            yield asyncio.get_running_loop().time() + self._timeout_s
        finally:
            self.in_flight -= 1
            self._of_caller -= Counter([request.caller])  # drops those that are at nought
            self._mean_s += _NEWEST * (time.perf_counter() - began - self._mean_s)

    def _refuse_when_closed(self, request: GenerationRequest) -> None:
        claim = request.claim
        if request.adapter is not None or (claim is not None and claim.document_id is not None):
            self._refuse()

    def _refuse_when_full(self, caller: str | None) -> None:
        if self.in_flight >= self._max_requests:
            self.refused += 1
            raise EngineBusyError(
                f"{self.in_flight} requests are waiting or being answered, and this server lets in no more. "
                "Try again a little later.",
                self._retry_after_s(),
            )
        if caller is not None and self._of_caller[caller] >= self._max_per_user:
            self.refused += 1
            raise CallerBusyError(
                f"{self._max_per_user} answers of yours are waited for already, the most for one user. Wait "
                "for some of them.",
                self._retry_after_s(),
            )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.timed_out += 1
            raise RequestTimeoutError(
                f"The request took longer than {self._timeout_s:g} seconds. Ask for a shorter answer, or "
                "again when less is going on."
            ) from error

    def _retry_after_s(self) -> int:
        """Those that are there now will be done after about as long as requests take."""
        least, most = _RETRY_AFTER_S
        return min(most, max(least, math.ceil(self._mean_s)))
