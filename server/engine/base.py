"""The port to an inference engine: what answering needs of one, and nothing of how it is done."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from km_registry.types import KE, KM, Claim
from server.engine.residency_types import Counts

#: Users' questions run before synthetic text; lower runs first.
PRIORITY_USER = 0
PRIORITY_SYNTHESIS = 10


class EngineUnavailableError(Exception):
    """The inference engine is not running."""


class EngineNotReachedError(EngineUnavailableError):
    """The engine is elsewhere, and not where the settings say."""


class AdapterLoadError(EngineUnavailableError):
    """The engine cannot load this adapter; others are not concerned."""


class AdapterGoneError(Exception):
    """The adapter was deleted before the request had its turn."""


class UnsupportedRequestError(ValueError):
    """The engine does not take this request; the message says what to change. `param` names the field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as the engine knows it. Name, id and path belong together for ever.

    `km` and `ke` are what it is made of, for a replica that has them from the store, without the path.
    """

    name: str
    engine_id: int
    path: Path
    km: KM | None = field(default=None, compare=False)
    ke: KE | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, as token ids, and how to go on from it.

    `adapter` None asks the bare base model. `cache_salt` keeps cached prefixes apart. `caller` is the user
    that it is for, where users are bounded, and `claim` what it rests on: it ends when that no longer stands.
    Neither changes anything of the answer.
    With `logprobs` the result holds the log-probability of every token that was written, with
    `prompt_logprobs` that of every prompt token but the first, each with the `top_logprobs` likeliest tokens
    at its place. `max_tokens` 0 scores the prompt and writes nothing.
    `json_schema`, a JSON schema as text, is what the answer is held to; it ends when it fits.
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
    caller: str | None = None
    claim: Claim | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False
    prompt_logprobs: bool = False
    top_logprobs: int = 0
    json_schema: str | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability (nats), and the likeliest tokens at its place with theirs, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `finish_reason` ("stop", "length") is set on the last one only.

    `text` may be empty: while its end may be the beginning of a stop text, or half a character.
    `logprobs` belong to `token_ids`; None when not asked for. `prompt_logprobs` come with the first.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer. `first_token_s` is the time from the request to its first token, in seconds."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    first_token_s: float | None = None


def joined(
    request: GenerationRequest, deltas: Sequence[Delta], first_token_s: float | None = None
) -> Generation:
    """The whole answer that the pieces of a stream make."""
    last = deltas[-1]
    assert last.finish_reason is not None
    return Generation(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish_reason=last.finish_reason,
        prompt_tokens=len(request.prompt_token_ids),
        logprobs=tuple(one for delta in deltas for one in delta.logprobs or ()) if request.logprobs else None,
        prompt_logprobs=tuple(one for delta in deltas for one in delta.prompt_logprobs or ())
        if request.prompt_logprobs
        else None,
        first_token_s=first_token_s,
    )


@dataclass(frozen=True, slots=True)
class Eviction:
    """What an engine acknowledges once it has let go of an adapter.

    Where it was, `from_slot` and `from_memory`, its weights were overwritten with zeros. `prefixes_forgotten`
    says whether cached prefixes were forgotten by then. If not, since other requests were running, nothing
    can find those of this adapter any more, and they are forgotten as soon as the engine is idle. Of an
    engine with replicas, `replicas` are those that acknowledged: all that were alive.
    """

    name: str
    from_slot: bool
    from_memory: bool
    prefixes_forgotten: bool
    replicas: tuple[str, ...] = ()

    @property
    def resident(self) -> bool:
        """Whether the engine held the adapter at all."""
        return self.from_memory


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine is doing, and what it did since it started. No name of an adapter is in it.

    Requests are `waiting` until their first token, those for a slot among them, then `answering`. Of the
    moves that `adapters` counts, `load_ms` is what all from disk to memory took together, and `swap_ms` those
    from memory to a slot.
    """

    waiting: int
    answering: int
    adapters: Counts
    load_ms: float
    swap_ms: float


class Engine(Protocol):
    """An engine with many adapters over one base model.

    Every method but `start` raises EngineUnavailableError when the engine is not running. An adapter is
    loaded when first asked for; requests with different adapters, or none, may run together and never
    influence each other. Requests for more adapters than there are slots wait for one, no longer than
    `server.engine.residency` promises. Cancelling the awaiting task aborts the request.
    """

    async def start(self) -> None:
        """Load the base model and be ready. After `close` it starts anew, with the same adapters."""
        ...

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end.

        Raises ValueError when the prompt is empty or too long, UnsupportedRequestError for what this engine
        does not do, AdapterLoadError for an adapter that is damaged or does not fit, AdapterGoneError for one
        that is retired.
        """
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Run one request, piece by piece: the same answer. Raises like `generate`.

        Closing the iterator aborts the request.
        """
        ...

    async def prefetch(self, adapter: Adapter) -> bool:
        """Begin to load the adapter to memory, since it may soon be asked, unless that would cost others
        theirs. Whether it is there or on its way; one that cannot be loaded is found out when it is asked."""
        ...

    async def retire(self, adapter: Adapter) -> int:
        """Let in no more requests for the adapter, until it is evicted: AdapterGoneError.

        Those that still wait for a slot get the same at once; returns how many. Those in flight go on.
        """
        ...

    async def evict(self, adapter: Adapter) -> Eviction:
        """Remove the adapter from the engine, overwrite what held it, and forget cached prefixes.

        The caller has stopped admitting requests for it; this waits for those in flight. Afterwards its files
        may be deleted.
        """
        ...

    async def status(self) -> EngineStatus:
        """What the engine is doing, and what it did since it started."""
        ...

    def in_slots(self) -> frozenset[str]:
        """Names of the adapters in slots, or on their way there; of replicas, in those of any."""
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
