"""The engine that is measured, its KMs, and questions asked of it in waves."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from km_registry.base_model import BaseModel
from server.engine.adapter_files import verifier
from server.engine.base import Adapter, Generation, GenerationRequest
from server.engine.vllm_engine import EngineConfig, VllmEngine

SLOTS = 8
PLACES = 64

Prompt = tuple[int, ...]


class Generates(Protocol):
    """The part of an engine that is measured."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end."""
        ...


@dataclass(slots=True)
class Asked:
    """The questions, asked over and over, never the same cached prefix twice."""

    prompts: Sequence[Prompt]
    tokens: int
    _numbers: Iterator[int]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], tokens: int) -> Asked:
        """All questions, each answered with so many tokens."""
        return cls(prompts, tokens, itertools.count())

    def next(self, adapter: Adapter | None = None, **fields: Any) -> GenerationRequest:
        """The next request."""
        number = next(self._numbers)
        prompt = self.prompts[number % len(self.prompts)]
        settings = {"cache_salt": f"bench-{number}", "ignore_eos": True} | fields
        return GenerationRequest(prompt, self.tokens, adapter=adapter, **settings)


@dataclass(frozen=True, slots=True)
class Wave:
    """What came of some requests: tokens per second, and each one's seconds, whole and to its first token."""

    tokens_per_s: float
    seconds: tuple[float, ...]
    first_token_s: tuple[float, ...]


async def wave(engine: Generates, requests: Sequence[GenerationRequest], together: int) -> Wave:
    """Run the requests, so many at a time, in order: whoever is done takes the next."""
    waiting = iter(requests)
    took: list[tuple[float, float, int]] = []

    async def worker() -> None:
        for request in waiting:
            began = time.perf_counter()
            found = await engine.generate(request)
            took.append((time.perf_counter() - began, found.first_token_s or 0.0, len(found.token_ids)))

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(together)))
    elapsed = time.perf_counter() - began
    seconds, firsts, tokens = zip(*took, strict=True)
    return Wave(sum(tokens) / elapsed, seconds, firsts)


def config(model: Path) -> EngineConfig:
    """The same for all engines that are compared. A document of 5,000 tokens fits into a prompt."""
    return EngineConfig(
        model=model,
        max_loras=SLOTS,
        max_cpu_loras=PLACES,
        max_lora_rank=16,
        max_model_len=6144,
        kv_cache_bytes=640 * 2**20,
        max_num_seqs=32,
    )


@asynccontextmanager
async def ours(model: BaseModel, composites: Path) -> AsyncIterator[VllmEngine]:
    """Our engine, as the server makes it."""
    verify = verifier(composites, base_fingerprint=model.fingerprint, max_rank=16)
    engine = VllmEngine(config(model.path), verify)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def adapters(kms: Sequence[Path], first_id: int = 1) -> list[Adapter]:
    """KMs as the engine knows them; their ids are far from those of a registry's on the same engine."""
    return [Adapter(f"km-{number}", 10**6 + number, path) for number, path in enumerate(kms, first_id)]
