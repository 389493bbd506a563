"""Tokens per second with KMs: over no LoRA, over the stock operator, and with more KMs than slots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_engines import SLOTS, Asked, Generates, Prompt, adapters, median, wave
from server.engine.base import Adapter, Engine

_TOGETHER = 8
_ZIPF_TOGETHER = 16


async def measure(
    without: Generates,
    stock: Generates,
    engine: Engine,
    kms: Sequence[Path],
    prompts: Sequence[Prompt],
    *,
    rounds: int,
    tokens: int,
    zipf: int,
) -> dict[str, Any]:
    """All three engines taking turns; then `zipf` requests to KMs by Zipf's law."""
    asked = Asked.of(prompts, tokens)
    found = adapters(kms)
    figures = await _lora(without, stock, engine, asked, found[:SLOTS], rounds)
    figures |= await _zipf(without, engine, asked, found, zipf)
    for adapter in found:
        await engine.evict(adapter)
    return figures


async def _lora(
    without: Generates,
    stock: Generates,
    engine: Generates,
    asked: Asked,
    kms: Sequence[Adapter],
    rounds: int,
) -> dict[str, Any]:
    kinds: dict[str, tuple[Generates, Sequence[Adapter | None]]] = {
        "without_lora": (without, [None]),
        "base": (engine, [None]),
        "1_km": (engine, kms[:1]),
        "8_kms": (engine, kms),
        "stock_8_kms": (stock, kms),
    }
    seen: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, (subject, of) in kinds.items():
            requests = [asked.next(of[index % len(of)]) for index in range(_TOGETHER)]
            speed = (await wave(subject, requests, _TOGETHER)).tokens_per_s
            # The first round loads the adapters, and compiles.
            if number:
                seen[kind].append(speed)
    speeds = {kind: median(of) for kind, of in seen.items()}

    def ratio(kind: str, over: str) -> float:
        """The median of the rounds' ratios: each round sees the machine as it then is."""
        return round(median([a / b for a, b in zip(seen[kind], seen[over], strict=True)]), 3)

    return {
        "tokens_per_s": {kind: round(speed, 1) for kind, speed in speeds.items()},
        "lora_ratio_1": ratio("1_km", "without_lora"),
        "lora_ratio_8": ratio("8_kms", "without_lora"),
        "base_ratio": ratio("base", "without_lora"),
        "speedup_vs_stock_8": ratio("8_kms", "stock_8_kms"),
        "rounds": rounds,
    }


async def _zipf(
    without: Generates, engine: Engine, asked: Asked, kms: Sequence[Adapter], count: int
) -> dict[str, Any]:
    weights = [1 / rank for rank in range(1, len(kms) + 1)]
    draw = random.Random(0)
    # Once each, so that none comes from disk.
    await wave(engine, [asked.next(km) for km in kms], _ZIPF_TOGETHER)
    halves = []
    for _ in range(2):
        chosen = draw.choices(kms, weights, k=count // 2)
        base = await wave(without, [asked.next() for _ in chosen], _ZIPF_TOGETHER)
        before = (await engine.status()).adapters
        zipf = await wave(engine, [asked.next(km) for km in chosen], _ZIPF_TOGETHER)
        after = (await engine.status()).adapters
        halves.append((base, zipf, after.swaps - before.swaps))
    seconds = [second for _, zipf, _ in halves for second in zipf.seconds]
    firsts = [second for _, zipf, _ in halves for second in zipf.first_token_s]
    return {
        "zipf_ratio": round(median([zipf.tokens_per_s / base.tokens_per_s for base, zipf, _ in halves]), 3),
        "zipf_tokens_per_s": round(median([zipf.tokens_per_s for _, zipf, _ in halves]), 1),
        "zipf_longest_over_median": round(max(seconds) / median(seconds), 2),
        "zipf_first_token_longest_over_median": round(max(firsts) / median(firsts), 2),
        "zipf_kms": len(kms),
        "zipf_requests": len(seconds),
        "zipf_swaps": sum(swaps for _, _, swaps in halves),
    }
