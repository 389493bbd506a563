"""The port to an inference engine: what answering needs of one, and nothing of how it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Users' questions run before synthetic text; lower runs first.
PRIORITY_USER = 0
PRIORITY_SYNTHESIS = 10


class EngineUnavailableError(Exception):
    """The inference engine is not running."""


class AdapterLoadError(EngineUnavailableError):
    """The engine cannot load this adapter; others are not concerned."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as the engine knows it. Name, id and path belong together for ever."""

    name: str
    engine_id: int
    path: Path


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, as token ids, and how to go on from it.

    `adapter` None asks the bare base model. `cache_salt` keeps cached prefixes apart.
    With `prompt_logprobs` the result holds one log-probability for every prompt token but the first.
    """

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: Adapter | None = None
    priority: int = PRIORITY_USER
    cache_salt: str | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `finish_reason` ("stop", "length") is set on the last one only."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    prompt_logprobs: tuple[float | None, ...] | None = None


class Engine(Protocol):
    """An engine with many adapters over one base model.

    Every method but `start` raises EngineUnavailableError when the engine is not running. An adapter is
    loaded when first asked for; requests with different adapters, or none, may run together and never
    influence each other. Cancelling the awaiting task aborts the request.
    """

    async def start(self) -> None:
        """Load the base model and be ready."""
        ...

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end."""
        ...

    def stream(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run one request, piece by piece."""
        ...

    async def evict(self, adapter: Adapter) -> bool:
        """Remove the adapter from the engine and forget cached prefixes.

        The caller has stopped admitting requests for it; this waits for those in flight.
        Returns whether the adapter had been resident. Afterwards its files may be deleted.
        """
        ...

    async def check(self) -> None:
        """Raise EngineUnavailableError unless the engine is alive."""
        ...

    async def close(self) -> None:
        """Stop the engine and every process of it. Idempotent."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...
