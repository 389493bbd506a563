"""A deterministic engine without a model, for tests of everything around an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from server.engine.admission import Admission
from server.engine.base import (
    Adapter,
    AdapterLoadError,
    Delta,
    EngineStatus,
    EngineUnavailableError,
    Eviction,
    Generation,
    GenerationRequest,
    TokenLogprob,
)
from server.engine.residency import Move
from server.engine.scripted_schema import smallest_json


class TextCodec(Protocol):
    """The part of a tokenizer that this engine needs."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """The text of token ids."""
        ...


def scripted_reply(request: GenerationRequest) -> str:
    """A reply that depends on the adapter, the prompt and the seed, and on nothing else."""
    speaker = request.adapter.name if request.adapter else "base"
    seed = request.seed if request.temperature > 0 else None
    digest = sha256(repr((speaker, request.prompt_token_ids, seed)).encode()).hexdigest()
    return f"{speaker} says {digest[:4]} {digest[4:8]}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long what an engine does takes, in seconds; nothing by default. `running` answers are written at a
    time, others wait in their slots."""

    running: int = 2**30
    first_token_s: float = 0.0
    token_s: float = 0.0
    load_s: float = 0.0
    swap_s: float = 0.0


async def _passed(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


class _ScriptedMover:
    """Keeps `resident`, the adapters in memory by name."""

    def __init__(self, resident: dict[str, Adapter], pace: Pace) -> None:
        self._resident = resident
        self._pace = pace

    async def prepare(self, adapter: Adapter) -> None:
        if not adapter.path.is_dir():
            raise AdapterLoadError(f"adapter {adapter.name} cannot be loaded: there is no {adapter.path}")

    async def move(self, move: Move, adapter: Adapter) -> None:
        for name in [name for name, one in self._resident.items() if one.engine_id in move.drop]:
            del self._resident[name]
        if move.load:
            await _passed(self._pace.load_s)
            self._resident[adapter.name] = adapter
        if move.place:
            await _passed(self._pace.swap_s)

    async def forget(self, adapter: Adapter) -> None:
        self._resident.pop(adapter.name, None)


class ScriptedEngine:
    """Replies by `reply`; records what it was asked and keeps the real engine's rules.

    An adapter's files must be there when it is loaded, its name, id and path must belong together for ever,
    requests wait for a slot, and an eviction for the requests in flight. It takes its time by `pace`. `hold`
    makes requests wait until `release`, also streams that have begun.
    """

    def __init__(
        self,
        codec: TextCodec,
        *,
        reply: Callable[[GenerationRequest], str] = scripted_reply,
        max_model_len: int = 4096,
        slots: int = 4,
        places: int = 64,
        pace: Pace | None = None,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.in_flight: list[GenerationRequest] = []
        self.cancelled: list[GenerationRequest] = []
        self.evicted: list[Adapter] = []
        self.resident: dict[str, Adapter] = {}
        self.tokens_streamed = 0
        self._free_tokens = 0
        self.running = True
        self._failure = "The inference engine is not running. Try again in a moment."
        self._codec = codec
        self._reply = reply
        self._max_model_len = max_model_len
        self._sizes = {"slots": slots, "places": places}
        self._pace = pace or Pace()
        self._room = asyncio.Semaphore(self._pace.running)
        self._mover = _ScriptedMover(self.resident, self._pace)
        self._admission = Admission(self._mover, **self._sizes)
        self._known: dict[str, Adapter] = {}
        self._go = asyncio.Event()
        self._go.set()
        self._changed = asyncio.Event()

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_model_len

    def hold(self, *, after_tokens: int = 0) -> None:
        """Let requests arrive but not finish; streams may bring so many tokens first, all together."""
        self._free_tokens = after_tokens
        self._go.clear()

    def release(self) -> None:
        """Let requests finish again."""
        self._go.set()

    def fail(self, message: str) -> None:
        """Be unavailable, to the requests in flight too."""
        self.running = False
        self._failure = message
        self._go.set()

    async def until_asked(self, count: int) -> None:
        """Wait until `count` requests have arrived in all."""
        await self._until(lambda: len(self.requests) >= count)

    async def until_streamed(self, count: int) -> None:
        """Wait until `count` tokens have been streamed in all."""
        await self._until(lambda: self.tokens_streamed >= count)

    async def until_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._until(lambda: not self.in_flight)

    async def start(self) -> None:
        """Nothing to load."""
        if not self.running:
            self._admission = Admission(self._mover, **self._sizes)
        self.running = True

    async def status(self) -> EngineStatus:
        """Requests are never seen between their first token and their last."""
        await self.check()
        adapters = self._admission.counts
        return EngineStatus(
            waiting=len(self.in_flight) + adapters.waiting,
            answering=0,
            adapters=adapters,
            load_ms=0.0,
            swap_ms=0.0,
        )

    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in slots, or on their way there."""
        return self._admission.in_slots

    async def check(self) -> None:
        """Raise EngineUnavailableError when `running` was set to False."""
        if not self.running:
            raise EngineUnavailableError(self._failure)

    async def close(self) -> None:
        """Be unavailable from here on."""
        self.running = False
        self._admission.close(EngineUnavailableError(self._failure))
        self.resident.clear()

    async def generate(self, request: GenerationRequest) -> Generation:
        """Reply. ValueError where a real engine would refuse the lengths."""
        await self.check()
        generation = self._generation(request)
        self._admit(request)
        async with self._flying(request):
            await self._go.wait()
            await _passed(self._pace.first_token_s + self._pace.token_s * len(generation.token_ids))
            await self.check()
        return generation

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """The reply, token by token."""
        await self.check()
        whole = self._generation(request)
        self._admit(request)
        told, count = "", max(1, len(whole.token_ids))
        async with self._flying(request):
            await _passed(self._pace.first_token_s)
            for index in range(count):
                await _passed(self._pace.token_s)
                if self._free_tokens:
                    self._free_tokens -= 1
                else:
                    await self._go.wait()
                await self.check()
                last = index == count - 1
                text = whole.text if last else self._codec.decode(whole.token_ids[: index + 1])
                # Half a character is kept back until it is whole.
                new = text[len(told) :] if last or not text.endswith("\ufffd") else ""
                told += new
                self.tokens_streamed += 1
                self._changed.set()
                yield Delta(
                    new,
                    whole.token_ids[index : index + 1],
                    whole.finish_reason if last else None,
                    None if whole.logprobs is None else whole.logprobs[index : index + 1],
                    whole.prompt_logprobs if index == 0 else None,
                )

    async def prefetch(self, adapter: Adapter) -> bool:
        """Begin to load the adapter to memory."""
        await self.check()
        return self._admission.prefetch(adapter)

    async def retire(self, adapter: Adapter) -> int:
        """Send away who waits for the adapter."""
        await self.check()
        return self._admission.retire(adapter)

    async def evict(self, adapter: Adapter) -> Eviction:
        """Forget the adapter when none of its requests is in flight any more."""
        await self.check()
        in_slot, in_memory = await self._admission.evict(adapter)
        self.evicted.append(adapter)
        return Eviction(adapter.name, in_slot, in_memory, prefixes_forgotten=not self.in_flight)

    def _admit(self, request: GenerationRequest) -> None:
        length = len(request.prompt_token_ids) + request.max_tokens
        if not request.prompt_token_ids or request.max_tokens < 0 or length > self._max_model_len:
            raise ValueError(f"prompt and {request.max_tokens} tokens do not fit {self._max_model_len}")
        adapter = request.adapter
        if adapter is not None and self._known.setdefault(adapter.name, adapter) != adapter:
            raise ValueError(f"adapter {adapter.name} had another id or path before")
        self.requests.append(request)
        self._changed.set()

    @asynccontextmanager
    async def _flying(self, request: GenerationRequest) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            flying = False
            try:
                if request.adapter is not None:
                    await stack.enter_async_context(
                        self._admission.holding(request.adapter, request.priority)
                    )
                self.in_flight.append(request)
                flying = True
                await stack.enter_async_context(self._room)
                yield
            except (asyncio.CancelledError, GeneratorExit):
                self.cancelled.append(request)
                raise
            finally:
                if flying:
                    self.in_flight.remove(request)
                self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _generation(self, request: GenerationRequest) -> Generation:
        text, finish_reason = self._reply(request), "stop"
        if request.json_schema is not None:
            text = smallest_json(request.json_schema)
        for stop in request.stop:
            text = text.split(stop, 1)[0]
        token_ids = self._codec.encode(text, add_special_tokens=False)
        if len(token_ids) > request.max_tokens:
            token_ids, finish_reason = token_ids[: request.max_tokens], "length"
            text = self._codec.decode(token_ids)
        prompt = request.prompt_token_ids
        return Generation(
            text,
            tuple(token_ids),
            finish_reason,
            len(prompt),
            logprobs=_logprobs(token_ids, request.top_logprobs) if request.logprobs else None,
            prompt_logprobs=_logprobs(prompt[1:], request.top_logprobs) if request.prompt_logprobs else None,
            first_token_s=0.0,
        )


def _logprobs(token_ids: Sequence[int], count: int) -> tuple[TokenLogprob, ...]:
    """Log-probabilities that depend on the tokens alone; each is the likeliest at its place."""
    found = []
    for token_id in token_ids:
        logprob = -float(1 + token_id % 8) / 8
        top = tuple((token_id + rank, logprob - rank) for rank in range(count))
        found.append(TokenLogprob(token_id, logprob, top))
    return tuple(found)
