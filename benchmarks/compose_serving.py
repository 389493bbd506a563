"""What serving a composite costs, and whether the engine writes what transformers and PEFT write offline."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from km_registry.prompts import answer_messages, encode
from server.engine.base import Adapter, GenerationRequest
from server.engine.vllm_engine import EngineConfig, VllmEngine

_TOGETHER = 8
_WAVES = 2

Prompt = tuple[int, ...]


async def measure(
    model: Path,
    kms: Sequence[Path],
    composites: Sequence[Path],
    questions: Sequence[str],
    *,
    rounds: int,
    tokens: int,
) -> dict[str, Any]:
    """Throughput of each kind in turn, then how far served and offline answers agree."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [tuple(encode(tokenizer, answer_messages(question))) for question in questions]
    engine = VllmEngine(EngineConfig(model=model, max_loras=_TOGETHER, max_lora_rank=32))
    await engine.start()
    try:
        km_adapters = [Adapter(f"km-{i}", 1 + i, path) for i, path in enumerate(kms)]
        joined = [Adapter(f"kc-{i}", 1001 + i, path) for i, path in enumerate(composites)]
        served = _Served(engine, prompts, tokens)
        figures = await served.throughput(km_adapters, joined, rounds)
        answers = await served.answers(joined)
    finally:
        await engine.close()
    return {**figures, **await asyncio.to_thread(_agreement, model, composites, prompts, answers, tokens)}


class _Served:
    """The engine with the questions, asked eight at a time."""

    def __init__(self, engine: VllmEngine, prompts: Sequence[Prompt], tokens: int) -> None:
        self._engine = engine
        self._prompts = prompts
        self._tokens = tokens
        self._salts = itertools.count()

    async def throughput(
        self, kms: Sequence[Adapter], composites: Sequence[Adapter], rounds: int
    ) -> dict[str, Any]:
        """Tokens written per second by kind, the kinds taking turns; the median of the rounds."""
        kinds: dict[str, Sequence[Adapter | None]] = {
            "base": [None],
            "km": kms[:1],
            "composite": composites[:1],
            f"{_TOGETHER}_kms": kms,
            f"{_TOGETHER}_composites": composites,
        }
        seen: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind, adapters in kinds.items():
                speed = await self._wave(adapters)
                # The first round loads the adapters.
                if number:
                    seen[kind].append(speed)
        median = {kind: statistics.median(speeds) for kind, speeds in seen.items()}
        return {
            "tokens_per_second": {kind: round(speed, 1) for kind, speed in median.items()},
            "composite_of_km": round(median["composite"] / median["km"], 3),
            "8_composites_of_8_kms": round(median[f"{_TOGETHER}_composites"] / median[f"{_TOGETHER}_kms"], 3),
            "km_of_base": round(median["km"] / median["base"], 3),
            "rounds": rounds,
        }

    async def _wave(self, adapters: Sequence[Adapter | None]) -> float:
        """Eight askers, each with its own adapter where there are several, one question after another."""

        async def ask(number: int) -> int:
            written = 0
            for turn in range(_WAVES):
                prompt = self._prompts[(number * _WAVES + turn) % len(self._prompts)]
                written += len(await self._generate(prompt, adapters[number % len(adapters)], whole=True))
            return written

        began = time.perf_counter()
        written = sum(await asyncio.gather(*(ask(number) for number in range(_TOGETHER))))
        return written / (time.perf_counter() - began)

    async def answers(self, composites: Sequence[Adapter]) -> list[tuple[int, ...]]:
        """The greedy answer to every question, the composites taking turns, eight questions at a time."""
        slots = asyncio.Semaphore(_TOGETHER)

        async def ask(number: int, prompt: Prompt) -> tuple[int, ...]:
            async with slots:
                return await self._generate(prompt, composites[number % len(composites)], whole=False)

        return await asyncio.gather(*(ask(i, prompt) for i, prompt in enumerate(self._prompts)))

    async def _generate(self, prompt: Prompt, adapter: Adapter | None, *, whole: bool) -> tuple[int, ...]:
        request = GenerationRequest(
            prompt,
            self._tokens,
            adapter=adapter,
            # Nothing is taken from a cache, or the second round would have less to do.
            cache_salt=f"bench-{next(self._salts)}",
            ignore_eos=whole,
        )
        return (await self._engine.generate(request)).token_ids


def _agreement(
    model: Path,
    composites: Sequence[Path],
    prompts: Sequence[Prompt],
    answers: Sequence[tuple[int, ...]],
    tokens: int,
) -> dict[str, Any]:
    """Shares of tokens and of answers that are the same offline, in float32.

    `largest_gap_at_a_difference` is by how much, in logits, the offline model preferred its own token where
    the two first differ: about 0 for a tie that rounding decided.
    """
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    peft = PeftModel.from_pretrained(base, composites[0], adapter_name="0")
    for number, path in enumerate(composites[1:], start=1):
        peft.load_adapter(path, adapter_name=str(number))
    same = of = whole = 0
    gaps = [0.0]
    for i, (prompt, served) in enumerate(zip(prompts, answers, strict=True)):
        peft.set_adapter(str(i % len(composites)))
        written, margins = _greedy(peft, prompt, tokens)
        length = max(len(written), len(served))
        agree = sum(a == b for a, b in zip(written, served, strict=False))
        same, of, whole = same + agree, of + length, whole + (agree == length)
        if agree < length:
            first = next(
                (at for at, (a, b) in enumerate(zip(written, served, strict=False)) if a != b), len(margins)
            )
            gaps += margins[first : first + 1]
    return {
        "questions": len(prompts),
        "greedy_token_agreement": round(same / of, 4),
        "greedy_answers_identical": round(whole / len(prompts), 4),
        "largest_gap_at_a_difference": round(max(gaps), 5),
    }


def _greedy(model: Any, prompt: Prompt, tokens: int) -> tuple[tuple[int, ...], list[float]]:
    """The greedy answer, its end token included as by the engine, and each token's lead in logits."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        done = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = [logits[0].topk(2).values for logits in done.logits]
    return tuple(done.sequences[0, ids.shape[1] :].tolist()), [float(two[0] - two[1]) for two in best]
