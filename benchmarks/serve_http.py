"""What the gateway adds to the engine, and how long publishing and deleting take, over HTTP with a key."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.serve_engines import Asked, Prompt, median, wave
from benchmarks.serve_server import Served
from server.answering import version_salt
from server.engine.base import Adapter, Generation, GenerationRequest
from server.kms import adapter_of

_TOGETHER = 8


async def measure(
    served: Served, prompts: Sequence[Prompt], *, rounds: int, repeats: int, tokens: int
) -> dict[str, Any]:
    """All of it, on one server."""
    asked = Asked.of(prompts, tokens)
    return {
        **await _gateway(served, asked, rounds),
        **await _added(served, Asked.of(prompts, 1), 4 * repeats),
        **await _publishing(served, repeats),
        **await _deleting(served, asked, repeats),
    }


class _ThroughHttp:
    """Puts the engine's requests to the gateway, as a client would."""

    def __init__(self, served: Served, document_id: str) -> None:
        self._served = served
        self._document_id = document_id

    async def generate(self, request: GenerationRequest) -> Generation:
        sent = {
            "model": self._document_id,
            "prompt": list(request.prompt_token_ids),
            "max_tokens": request.max_tokens,
            "temperature": 0,
        }
        response = await self._served.http.post("/v1/completions", json=sent)
        response.raise_for_status()
        body = response.json()
        count = body["usage"]["completion_tokens"]
        text, reason = body["choices"][0]["text"], body["choices"][0]["finish_reason"]
        return Generation(text, (0,) * count, reason, body["usage"]["prompt_tokens"])


async def _asked_both_ways(served: Served) -> tuple[str, Adapter, str]:
    """A document with a KM in its slot, as both the gateway and the engine know it."""
    document_id = await served.published()
    km = served.state.registry.km_of(document_id)
    assert km is not None
    return document_id, adapter_of(km), version_salt(document_id, km.version)


async def _gateway(served: Served, asked: Asked, rounds: int) -> dict[str, Any]:
    document_id, adapter, salt = await _asked_both_ways(served)
    http, direct = _ThroughHttp(served, document_id), served.state.engine
    ratios = []
    # The same ones in every round: after the first, what of them is cached is so for both.
    requests = [asked.next(adapter, cache_salt=salt, ignore_eos=False) for _ in range(2 * _TOGETHER)]
    for number in range(rounds + 1):
        speeds = [
            (await wave(one, requests, _TOGETHER)).tokens_per_s for one in _turned([http, direct], number)
        ]
        over, under = _turned(speeds, number)
        if number:
            ratios.append(over / under)
    return {"gateway_ratio": round(median(ratios), 3)}


def _turned(two: list[Any], number: int) -> list[Any]:
    """Now the one first, now the other."""
    return two if number % 2 else two[::-1]


async def _added(served: Served, asked: Asked, repeats: int) -> dict[str, Any]:
    """One request of one token at a time, both ways in turn: what is added is added once, not per token."""
    document_id, adapter, salt = await _asked_both_ways(served)
    http, direct = _ThroughHttp(served, document_id), served.state.engine
    added = []
    request = asked.next(adapter, cache_salt=salt, ignore_eos=False)
    for number in range(repeats + 2):
        took = []
        for one in _turned([http, direct], number):
            began = time.perf_counter()
            await one.generate(request)
            took.append((time.perf_counter() - began) * 1000)
        over, under = _turned(took, number)
        if number >= 2:
            added.append(over - under)
    return {"gateway_added_ms": round(median(added), 2), "gateway_repeats": repeats}


async def _publishing(served: Served, repeats: int) -> dict[str, Any]:
    publish, answer = [], []
    for number in range(repeats + 1):
        document, job, directory = await served.staged()
        began = time.perf_counter()
        await served.publish(job, directory)
        there = time.perf_counter()
        await _first_piece(served, document.id)
        if number:
            publish.append((there - began) * 1000)
            answer.append((time.perf_counter() - there) * 1000)
    return {
        "publish_ms": round(median(publish), 1),
        "publish_to_answer_ms": round(median(answer), 1),
        "publish_to_answer_ms_max": round(max(answer), 1),
    }


async def _first_piece(served: Served, document_id: str) -> None:
    """Ask, and go away once the answer has begun."""
    sent = {"document_id": document_id, "question": "When does it open?", "mode": "km", "stream": True}
    async with served.http.stream("POST", "/answer", json=sent) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                return


async def _deleting(served: Served, asked: Asked, repeats: int) -> dict[str, Any]:
    """While four others are asked without pause."""
    others = [await served.published() for _ in range(4)]
    gone = [await served.published() for _ in range(repeats)]
    stopping = asyncio.Event()
    answered = itertools.count()

    async def traffic(document_id: str) -> None:
        http = _ThroughHttp(served, document_id)
        while not stopping.is_set():
            await http.generate(asked.next())
            next(answered)

    running = [asyncio.create_task(traffic(document_id)) for document_id in others]
    took = []
    for document_id in gone:
        await _ThroughHttp(served, document_id).generate(asked.next())
        began = time.perf_counter()
        response = await served.http.delete(f"/documents/{document_id}")
        response.raise_for_status()
        took.append((time.perf_counter() - began) * 1000)
    stopping.set()
    await asyncio.gather(*running)
    assert next(answered)
    return {"delete_ms": round(median(took), 1), "delete_ms_max": round(max(took), 1)}
