"""What a KM costs that is not in its slot, what it takes in memory, and whether memory grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serve_engines import SLOTS, Asked, Prompt, adapters, median
from km_registry.adapter_files import WEIGHTS
from server.engine.base import Adapter
from server.engine.vllm_engine import VllmEngine


async def measure(
    engine: VllmEngine,
    kms: Sequence[Path],
    prompts: Sequence[Prompt],
    *,
    repeats: int,
    cycles: int,
) -> dict[str, Any]:
    """First tokens from disk and from the slot in turn; then memory."""
    asked = Asked.of(prompts, 2)
    # First of all: memory that was freed before would be taken again, and not be seen.
    figures = await _resident(engine, asked, kms)
    figures |= await _first_tokens(engine, asked, kms, repeats)
    return figures | await _growth(engine, asked, kms, cycles)


async def _first_token_ms(engine: VllmEngine, asked: Asked, adapter: Adapter) -> float:
    began = time.perf_counter()
    async with aclosing(engine.stream(asked.next(adapter))) as stream:
        await anext(stream)
        return (time.perf_counter() - began) * 1000


async def _first_tokens(
    engine: VllmEngine, asked: Asked, kms: Sequence[Path], repeats: int
) -> dict[str, Any]:
    cold, warm = [], []
    before = await engine.status()
    for number in range(repeats + 2):
        (adapter,) = adapters([kms[number % len(kms)]], first_id=1000 + number)
        first, second = [await _first_token_ms(engine, asked, adapter) for _ in range(2)]
        if number >= 2:
            cold.append(first)
            warm.append(second)
        await engine.evict(adapter)
    after = await engine.status()
    loads = after.adapters.loads - before.adapters.loads
    swaps = after.adapters.swaps - before.adapters.swaps
    return {
        "cold_ttft_ms": round(median(cold), 1),
        "warm_ttft_ms": round(median(warm), 1),
        "cold_minus_warm_ms": round(median([a - b for a, b in zip(cold, warm, strict=True)]), 1),
        "load_ms": round((after.load_ms - before.load_ms) / loads, 1),
        "swap_ms": round((after.swap_ms - before.swap_ms) / swaps, 1),
        "ttft_repeats": repeats,
    }


async def _resident(engine: VllmEngine, asked: Asked, kms: Sequence[Path]) -> dict[str, Any]:
    """What adapters in memory add, while all slots are filled with others."""
    in_slots = adapters(kms[:SLOTS], first_id=10_000)
    for adapter in in_slots:
        await engine.generate(asked.next(adapter))
    before = _rss(engine)
    others = adapters(kms[SLOTS:], first_id=11_000)
    for adapter in others:
        assert await engine.prefetch(adapter)
    while moving := engine._admission._moving:
        await asyncio.wait(moving)
    resident = (_rss(engine) - before) / len(others)
    file = (kms[0] / WEIGHTS).stat().st_size
    for adapter in [*in_slots, *others]:
        assert (await engine.evict(adapter)).resident
    return {
        "rss_per_resident_km_mb": round(resident / 1e6, 2),
        "km_file_mb": round(file / 1e6, 2),
        "rss_per_resident_km_over_file": round(resident / file, 3),
    }


async def _growth(engine: VllmEngine, asked: Asked, kms: Sequence[Path], cycles: int) -> dict[str, Any]:
    """`cycles` adapters loaded, asked and evicted, one after the other."""
    settled = 0
    began = time.perf_counter()
    for number in range(cycles):
        # The first tenth settles the allocator.
        if number == cycles // 10:
            settled = _rss(engine)
        (adapter,) = adapters([kms[number % len(kms)]], first_id=20_000 + number)
        await engine.generate(asked.next(adapter))
        await engine.evict(adapter)
    return {
        "rss_growth_percent": round(100 * (_rss(engine) / settled - 1), 2),
        "cycles": cycles,
        "cycle_ms": round((time.perf_counter() - began) / cycles * 1000, 1),
    }


def _rss(engine: VllmEngine) -> int:
    """Bytes that the engine's processes hold."""
    return sum(process.memory_info().rss for process in engine._processes if psutil.pid_exists(process.pid))
