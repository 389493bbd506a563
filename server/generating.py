"""Several requests of one caller run together, whole or piece by piece: all of them, or none goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from km_registry.tracing import Span, span
from km_registry.types import Claim
from server.asked_notes import AskedNotes
from server.engine.base import PRIORITY_USER, Delta, Engine, Generation, GenerationRequest
from server.errors import InvalidRequestError, RevokedError, StoppingError
from server.limiting import Limiter
from server.metrics import Metrics
from server.revocations import Revocations

T = TypeVar("T")


class Generating:
    """Runs requests on the engine and counts them. One for each server."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        revocations: Revocations,
        limiter: Limiter,
        notes: AskedNotes,
        *,
        most: int,
        closing: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._revocations = revocations
        self._limiter = limiter
        self._notes = notes
        self._metrics = metrics
        self._most = most
        self._closing = closing

    async def whole(self, mode: str, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The answers, in order. Cancelling the awaiting task aborts all of them; so does one's failure.

        InvalidRequestError for more than the server ever takes at once, RateLimitedError for more than the
        caller may have in a minute, RevokedError when what they rest on is taken away.
        """
        claim = await self._admitted(requests)
        noted = self._noted(claim)
        work = _together([self._whole(mode, request) for request in requests])
        found = await (work if claim is None else self._revocations.unless_revoked(claim, work))
        await self._spend(claim, sum(one.prompt_tokens + len(one.token_ids) for one in found))
        await noted
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
        claim = await self._admitted(requests)
        noted = self._noted(claim)
        arrived: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._pump(mode, number, request, arrived))
            for number, request in enumerate(requests)
        ]
        cutting = [asyncio.create_task(self._stopping())]
        if claim is not None:
            cutting.append(asyncio.create_task(self._revoked(claim)))
        left = len(tasks)
        tokens = sum(len(request.prompt_token_ids) for request in requests)
        for task in (*tasks, *cutting):
            task.add_done_callback(arrived.put_nowait)
        try:
            while left:
                item = await arrived.get()
                if isinstance(item, asyncio.Task):
                    item.result()
                    left -= 1
                else:
                    tokens += len(item[1].token_ids)
                    await noted
                    yield item
        finally:
            await _ended([*tasks, *cutting])
            await self._spend(claim, tokens)

    def _noted(self, claim: Claim | None) -> asyncio.Future[None]:
        """Done once the audit log says that the claim's document is asked, where it rests on one."""
        if claim is not None and claim.document_id is not None:
            return self._notes.begin(claim)
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    async def _revoked(self, claim: Claim) -> None:
        with self._revocations.watching(claim) as revoked:
            await revoked.wait()
        raise RevokedError

    async def _stopping(self) -> None:
        await self._closing.wait()
        raise StoppingError

    async def _admitted(self, requests: Sequence[GenerationRequest]) -> Claim | None:
        """What all of them rest on, once they may be run."""
        self._check(requests)
        claim = requests[0].claim
        if claim is not None and self._limiter.limits_tokens:
            await asyncio.to_thread(self._limiter.admit, claim.principal)
        return claim

    async def _spend(self, claim: Claim | None, tokens: int) -> None:
        if claim is not None and self._limiter.limits_tokens:
            await asyncio.to_thread(self._limiter.spend, claim.principal, tokens)

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
        began, written = time.perf_counter(), 0
        # The pump's own task reads the stream to its end, so the span may be a block around it.
        with _generation(mode, request, streamed=True) as one:
            try:
                async with aclosing(self._stream(request)) as stream:
                    self._metrics.tokens(mode, len(request.prompt_token_ids), 0)
                    async for delta in stream:
                        if not written and delta.token_ids:
                            self._metrics.first_token(mode, time.perf_counter() - began)
                        written += len(delta.token_ids)
                        self._metrics.tokens(mode, 0, len(delta.token_ids))
                        arrived.put_nowait((number, delta))
            finally:
                one.set(completion_tokens=written)

    async def _whole(self, mode: str, request: GenerationRequest) -> Generation:
        if _is_nothing(request):
            return Generation("", (), "length", len(request.prompt_token_ids))
        with _generation(mode, request, streamed=False) as one:
            found = await self._engine.generate(request)
            one.set(completion_tokens=len(found.token_ids))
            return found

    async def _stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        if _is_nothing(request):
            yield Delta("", (), "length")
            return
        async with aclosing(self._engine.stream(request)) as stream:
            async for delta in stream:
                yield delta


def _generation(mode: str, request: GenerationRequest, *, streamed: bool) -> Span:
    return span(
        "generate",
        mode=str(mode),
        prompt_tokens=len(request.prompt_token_ids),
        adapter=request.adapter is not None,
        streamed=streamed,
    )


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
