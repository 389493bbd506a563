"""Answers per second from a KM, and from the document in the prompt, with and without the prefix cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.invented import invented
from benchmarks.serve_engines import Asked, adapters, wave
from km_registry.prompts import answer_messages, encode
from server.engine.base import Engine, GenerationRequest
from server.tokenizer import Tokenizer

_TOKENS = 16
_TOGETHER = 8


async def measure(
    engine: Engine,
    tokenizer: Tokenizer,
    kms: Sequence[Path],
    questions: Sequence[str],
    *,
    document_tokens: int,
    answers: int,
) -> dict[str, Any]:
    """The same questions three ways; `answers` of them with the document in the prompt, 8 times as many from
    the KM."""
    title, text = invented(lambda part: len(tokenizer.encode(part)), tokens=document_tokens, seed=5)

    def prompts(context: str | None) -> list[tuple[int, ...]]:
        asked = [answer_messages(one, title=title, context=context) for one in questions]
        return [tuple(encode(tokenizer, messages)) for messages in asked]

    closed, open_book = prompts(None), prompts(text)
    (adapter,) = adapters(kms[:1], first_id=5000)
    asked = Asked.of(closed, _TOKENS)
    requests = [asked.next(adapter) for _ in range(_TOGETHER + 8 * answers)]
    await wave(engine, requests[:_TOGETHER], _TOGETHER)
    found = await wave(engine, requests[_TOGETHER:], _TOGETHER)
    km = found.tokens_per_s / _TOKENS

    async def per_second(salts: Sequence[str]) -> float:
        began = time.perf_counter()
        for number, salt in enumerate(salts):
            prompt = open_book[number % len(open_book)]
            await engine.generate(GenerationRequest(prompt, _TOKENS, cache_salt=salt, ignore_eos=True))
        return len(salts) / (time.perf_counter() - began)

    uncached = await per_second([f"icl-{number}" for number in range(answers)])
    # The first fills the cache.
    await per_second(["cached"])
    cached = await per_second(["cached"] * answers * 2)
    return {
        "km_vs_icl_answers_per_s": round(km / uncached, 1),
        "km_vs_icl_answers_per_s_prefix_cached": round(km / cached, 1),
        "km_answers_per_s": round(km, 2),
        "icl_answers_per_s": round(uncached, 3),
        "icl_prompt_tokens": len(open_book[0]),
    }
