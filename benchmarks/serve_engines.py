"""Engines to compare: ours, vLLM without LoRA, and vLLM with LoRA by its stock operator."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from km_registry.base_model import BaseModel
from server.engine import cpu_lora
from server.engine.adapter_files import verifier
from server.engine.base import Adapter, Generation, GenerationRequest, joined
from server.engine.vllm_engine import EngineConfig, VllmEngine
from server.engine.vllm_requests import delta_of, lora_request, sampling
from server.engine.vllm_settings import cpu_environment, engine_args, environment

SLOTS = 8
PLACES = 64

Prompt = tuple[int, ...]


class Generates(Protocol):
    """The part of an engine that is measured."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end."""
        ...


class RawEngine:
    """vLLM's own, without any of ours: without LoRA at all, or with the stock operator."""

    def __init__(self, config: EngineConfig, *, lora: bool) -> None:
        self._config = config
        self._lora = lora
        self._llm: Any = None
        self._ids = itertools.count()

    async def start(self) -> None:
        """Load it, and make sure that it is what it is called."""
        await asyncio.to_thread(self._build)
        if self._lora:
            assert await self._llm.collective_rpc("km_lora_operators") == [[cpu_lora.STOCK_WRAPPER]]

    def _build(self) -> None:
        with environment(model=self._config.model, log_level=self._config.log_level):
            os.environ["VLLM_PLUGINS"] = "none"
            from vllm.v1.engine.async_llm import AsyncLLM

            args = engine_args(self._config, on_cpu=True)
            if not self._lora:
                args = replace(args, enable_lora=False, lora_target_modules=None)
            with cpu_environment(self._config.cpu_cores):
                self._llm = AsyncLLM.from_engine_args(args)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run one request to its end."""
        from vllm.inputs.engine import tokens_input

        outputs = self._llm.generate(
            tokens_input(list(request.prompt_token_ids), cache_salt=request.cache_salt),
            sampling(request, streaming=False),
            f"raw-{next(self._ids)}",
            lora_request=lora_request(request.adapter),
        )
        async with aclosing(outputs):
            return joined(request, [delta_of(request, output) async for output in outputs])

    def close(self) -> None:
        """Stop it."""
        if self._llm is not None:
            self._llm.shutdown(timeout=0.1)


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
async def ours(model: BaseModel, data_dir: Path, *, compiled: bool) -> AsyncIterator[VllmEngine]:
    """Our engine, as the server makes it with and without KM_COMPILE."""
    verify = verifier(data_dir / "composites", base_fingerprint=model.fingerprint, max_rank=16)
    more = {"cache_dir": data_dir / "compiled", "compile": compiled}
    engine = VllmEngine(replace(config(model.path), **more), verify)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def raw(model: BaseModel, *, lora: bool) -> AsyncIterator[RawEngine]:
    """vLLM as it comes."""
    engine = RawEngine(config(model.path), lora=lora)
    try:
        await engine.start()
        yield engine
    finally:
        engine.close()


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def adapters(kms: Sequence[Path], first_id: int = 1) -> list[Adapter]:
    """KMs as the engine knows them; their ids are far from those of a registry's on the same engine."""
    return [Adapter(f"km-{number}", 10**6 + number, path) for number, path in enumerate(kms, first_id)]
