"""Several requests of one caller run together, whole or piece by piece: all of them, or none goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from server.engine.base import PRIORITY_USER, Delta, Engine, Generation, GenerationRequest
from server.errors import InvalidRequestError, StoppingError
from server.metrics import Metrics

T = TypeVar("T")


class Generating:
    """Runs requests on the engine and counts them. One for each server."""

    def __init__(self, engine: Engine, metrics: Metrics, *, most: int, closing: asyncio.Event) -> None:
        self._engine = engine
        self._metrics = metrics
        self._most = most
        self._closing = closing

    async def whole(self, mode: str, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The answers, in order. Cancelling the awaiting task aborts all of them; so does one's failure.

        InvalidRequestError for more than the server ever takes at once.
        """
        self._check(requests)
        found = await _together([self._whole(request) for request in requests])
        for one in found:
            if one.first_token_s is not None:
                self._metrics.first_token(mode, one.first_token_s)
            self._metrics.tokens(mode, one.prompt_tokens, len(one.token_ids))
        return found

    async def pieces(
        self, mode: str, requests: Sequence[GenerationRequest]
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """The pieces of the answers as they come, each with its request's number.

        Closing the iterator aborts all of them; so does one's failure. Raises like `whole`, and StoppingError
        when the server stops: its streams are cut, and whoever reads them must know.
        """
        self._check(requests)
        arrived: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._pump(mode, number, request, arrived))
            for number, request in enumerate(requests)
        ]
        stopping = asyncio.create_task(self._stopping())
        left = len(tasks)
        for task in (*tasks, stopping):
            task.add_done_callback(arrived.put_nowait)
        try:
            while left:
                item = await arrived.get()
                if isinstance(item, asyncio.Task):
                    item.result()
                    left -= 1
                else:
                    yield item
        finally:
            await _ended([*tasks, stopping])

    async def _stopping(self) -> None:
        await self._closing.wait()
        raise StoppingError

    def _check(self, requests: Sequence[GenerationRequest]) -> None:
        if len(requests) > self._most and requests[0].priority <= PRIORITY_USER:
            raise InvalidRequestError(
                f"{len(requests)} answers were asked for at once, and at most {self._most} are given. "
                "Send fewer prompts, or lower n.",
                param="n",
            )

    async def _pump(
        self,
        mode: str,
        number: int,
        request: GenerationRequest,
        arrived: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]],
    ) -> None:
        began, first = time.perf_counter(), True
        async with aclosing(self._stream(request)) as stream:
            self._metrics.tokens(mode, len(request.prompt_token_ids), 0)
            async for delta in stream:
                if first and delta.token_ids:
                    self._metrics.first_token(mode, time.perf_counter() - began)
                    first = False
                self._metrics.tokens(mode, 0, len(delta.token_ids))
                arrived.put_nowait((number, delta))

    async def _whole(self, request: GenerationRequest) -> Generation:
        if _is_nothing(request):
            return Generation("", (), "length", len(request.prompt_token_ids))
        return await self._engine.generate(request)

    async def _stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        if _is_nothing(request):
            yield Delta("", (), "length")
            return
        async with aclosing(self._engine.stream(request)) as stream:
            async for delta in stream:
                yield delta


def _is_nothing(request: GenerationRequest) -> bool:
    return request.max_tokens == 0 and not request.prompt_logprobs


async def _together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. When one fails, or the caller is cancelled, the others are cancelled too."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
