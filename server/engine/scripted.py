"""A deterministic engine without a model, for tests of everything around an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Protocol

from server.engine.base import Adapter, Delta, EngineUnavailableError, Generation, GenerationRequest


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


class ScriptedEngine:
    """Replies by `reply`; records what it was asked and keeps the real engine's rules.

    An adapter's files must be there when it is asked for, its name, id and path must belong together for
    ever, and an eviction waits for the requests in flight. `hold` makes requests wait until `release`.
    """

    def __init__(
        self,
        codec: TextCodec,
        *,
        reply: Callable[[GenerationRequest], str] = scripted_reply,
        max_model_len: int = 4096,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.in_flight: list[GenerationRequest] = []
        self.cancelled: list[GenerationRequest] = []
        self.evicted: list[Adapter] = []
        self.resident: dict[str, Adapter] = {}
        self.running = True
        self._failure = "The inference engine is not running. Try again in a moment."
        self._codec = codec
        self._reply = reply
        self._max_model_len = max_model_len
        self._known: dict[str, Adapter] = {}
        self._go = asyncio.Event()
        self._go.set()
        self._changed = asyncio.Event()

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_model_len

    def hold(self) -> None:
        """Let requests arrive but not finish."""
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

    async def start(self) -> None:
        """Nothing to load."""
        self.running = True

    async def check(self) -> None:
        """Raise EngineUnavailableError when `running` was set to False."""
        if not self.running:
            raise EngineUnavailableError(self._failure)

    async def close(self) -> None:
        """Be unavailable from here on."""
        self.running = False

    async def generate(self, request: GenerationRequest) -> Generation:
        """Reply. ValueError where a real engine would refuse the lengths; FileNotFoundError as base says."""
        await self.check()
        self._admit(request)
        with self._flying(request):
            await self._go.wait()
            await self.check()
        return self._generation(request)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """The reply, token by token."""
        generation = await self.generate(request)
        for token_id in generation.token_ids[:-1]:
            yield Delta(self._codec.decode([token_id]), (token_id,))
        yield Delta(
            self._codec.decode(generation.token_ids[-1:]), generation.token_ids[-1:], generation.finish_reason
        )

    async def evict(self, adapter: Adapter) -> bool:
        """Forget the adapter when none of its requests is in flight any more."""
        await self.check()
        await self._until(lambda: all(request.adapter != adapter for request in self.in_flight))
        self.evicted.append(adapter)
        return self.resident.pop(adapter.name, None) is not None

    def _admit(self, request: GenerationRequest) -> None:
        length = len(request.prompt_token_ids) + request.max_tokens
        if not request.prompt_token_ids or request.max_tokens < 1 or length > self._max_model_len:
            raise ValueError(f"prompt and {request.max_tokens} tokens do not fit {self._max_model_len}")
        if request.adapter is not None:
            self._load(request.adapter)
        self.requests.append(request)
        self._changed.set()

    def _load(self, adapter: Adapter) -> None:
        if not adapter.path.is_dir():
            raise FileNotFoundError(adapter.path)
        if self._known.setdefault(adapter.name, adapter) != adapter:
            raise ValueError(f"adapter {adapter.name} had another id or path before")
        self.resident[adapter.name] = adapter

    @contextmanager
    def _flying(self, request: GenerationRequest) -> Iterator[None]:
        self.in_flight.append(request)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        finally:
            self.in_flight.remove(request)
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _generation(self, request: GenerationRequest) -> Generation:
        text, finish_reason = self._reply(request), "stop"
        for stop in request.stop:
            text = text.split(stop, 1)[0]
        token_ids = self._codec.encode(text, add_special_tokens=False)
        if len(token_ids) > request.max_tokens:
            token_ids, finish_reason = token_ids[: request.max_tokens], "length"
            text = self._codec.decode(token_ids)
        logprobs = None
        if request.prompt_logprobs:
            logprobs = (None, *(-float(1 + token_id % 8) / 8 for token_id in request.prompt_token_ids[1:]))
        return Generation(text, tuple(token_ids), finish_reason, len(request.prompt_token_ids), logprobs)
