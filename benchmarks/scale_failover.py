"""Two replicas of the real engine on Ray Serve, a tiny model: the answers of one, while one is killed."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from benchmarks.adapters import random_km
from benchmarks.serve_server import Served, served
from km_registry.base_model import BaseModel, resolve
from km_registry.types import Document
from server import composition
from server.config import ServerSettings
from server.engine.base import Engine
from server.engine.ray_engine import RayEngine
from tests.unit.trainer_worker.tiny import save_tiny_base

_DOCUMENTS, _TOKENS = 6, 24
#: Four heads of 64: vLLM computes no smaller ones on a CPU.
_HIDDEN = 256
_QUESTIONS = ("When does the harbour open?", "Who rings the bell?", "What does a ticket cost?")
#: Longest wait for a replica that was killed to be there again.
_BACK_S = 240.0


def measure() -> dict[str, Any]:
    """Answers that are not those of one engine, who acknowledged deletions, seconds to fail over."""
    with tempfile.TemporaryDirectory(prefix="km") as folder:
        model = resolve(str(save_tiny_base(Path(folder) / "tiny", hidden=_HIDDEN)), Path(folder))
        return asyncio.run(_measure(Path(folder), model))


async def _measure(folder: Path, model: BaseModel) -> dict[str, Any]:
    alone = _engine(folder, model, engine="vllm")
    async with _Gateway(folder / "alone", model, alone) as gateway:
        expected = await gateway.answers(await gateway.publish(_DOCUMENTS))
    print({"answers_of_one_engine": len(expected)}, flush=True)
    pair = _engine(folder, model, engine="ray", ray_replicas=2, ray_replica_cpus=0.5)
    assert isinstance(pair, RayEngine)
    async with _Gateway(folder / "pair", model, pair) as gateway:
        return await _killed(gateway, pair, expected)


async def _killed(gateway: _Gateway, pair: RayEngine, expected: list[str]) -> dict[str, Any]:
    await _until_there(pair, 2)
    documents = await gateway.publish(_DOCUMENTS)
    wrong = _differences(await gateway.answers(documents), expected)
    stopping, slowest, asked = asyncio.Event(), [0.0], [0]

    async def traffic(number: int) -> None:
        nonlocal wrong
        while not stopping.is_set():
            for question in range(len(_QUESTIONS)):
                began = time.perf_counter()
                told = await gateway.answer(documents[number], question)
                slowest[0] = max(slowest[0], time.perf_counter() - began)
                wrong += told != expected[number * len(_QUESTIONS) + question]
                asked[0] += 1

    usual = asyncio.gather(*(traffic(number) for number in range(3)))
    while asked[0] < 30:  # noqa: ASYNC110  a count, not an event
        await asyncio.sleep(0.05)
    before, slowest[0] = slowest[0], 0.0
    victim = next(iter((await pair.replicas()).values()))
    psutil.Process(victim.pid).kill()
    new = (await gateway.publish(1, first=_DOCUMENTS))[0]
    told = await gateway.answer(new, 0)
    away = await gateway.delete(documents[-1])
    seen = asked[0]
    while asked[0] < seen + 30:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    failing_over_s = slowest[0]
    await _until_there(pair, 2)
    again = await gateway.answers(documents[:-1])
    wrong += _differences(again, expected[: len(again)])
    wrong += told != await gateway.answer(new, 0)
    back = await gateway.delete(documents[-2])
    stopping.set()
    await usual
    statuses = [await gateway.status(one) for one in documents[-2:]]
    return {
        "answers": asked[0] + 2 * len(expected) + 2,
        "wrong_answers": wrong,
        "slowest_answer_before_s": round(before, 2),
        "slowest_answer_while_killed_s": round(failing_over_s, 2),
        "replicas_in_receipt_while_killed": len(away["engine_replicas"]),
        "replicas_in_receipt_after": len(back["engine_replicas"]),
        "deleted_answer_with": statuses,
    }


def _engine(folder: Path, model: BaseModel, **changed: Any) -> Engine:
    settings = ServerSettings(
        data_dir=folder / "data",
        base_model=str(model.path),
        max_model_len=1024,
        kv_cache_gb=0.05,
        max_loras=2,
        lora_rank=16,
        database_url=None,
        redis_url=None,
        **changed,
    )
    return composition.make_engine(settings, model, AutoTokenizer.from_pretrained(model.path))


class _Gateway:
    """The gateway over an engine, and what its user does."""

    def __init__(self, data_dir: Path, model: BaseModel, engine: Engine) -> None:
        self._engine = engine

        def write_km(directory: Path, document: Document) -> object:
            return random_km(directory, model, seed=int(document.title.split()[-1]), document=document)

        tokenizer = AutoTokenizer.from_pretrained(model.path)
        self._serving = served(engine, tokenizer, model, data_dir, write_km)
        self._served: Served

    async def __aenter__(self) -> _Gateway:
        await self._engine.start()
        self._served = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._serving.__aexit__(*raised)
        await self._engine.close()

    async def publish(self, count: int, *, first: int = 0) -> list[str]:
        """New documents with KMs of weights that follow from their numbers; their ids."""
        return [await self._served.published() for _ in range(first, first + count)]

    async def answers(self, documents: list[str]) -> list[str]:
        """To every question, of each document."""
        work = [self.answer(one, number) for one in documents for number in range(len(_QUESTIONS))]
        return list(await asyncio.gather(*work))

    async def answer(self, document: str, question: int) -> str:
        """The text of the answer, which goes on until its tokens are used up."""
        sent = {"model": document, "prompt": _QUESTIONS[question], "max_tokens": _TOKENS, "temperature": 0}
        response = await self._served.http.post("/v1/completions", json=sent)
        response.raise_for_status()
        text: str = response.json()["choices"][0]["text"]
        return text

    async def delete(self, document: str) -> dict[str, Any]:
        """What the receipt says was purged."""
        response = await self._served.http.delete(f"/documents/{document}")
        response.raise_for_status()
        purged: dict[str, Any] = response.json()["purged"]
        return purged

    async def status(self, document: str) -> int:
        """Of a question to the document."""
        sent = {"model": document, "prompt": _QUESTIONS[0], "max_tokens": 1}
        return (await self._served.http.post("/v1/completions", json=sent)).status_code


def _differences(found: list[str], expected: list[str]) -> int:
    return sum(one != other for one, other in zip(found, expected, strict=True))


async def _until_there(pair: RayEngine, count: int) -> None:
    async with asyncio.timeout(_BACK_S):
        while len(await pair.replicas()) < count:  # noqa: ASYNC110  Serve has no event for it
            await asyncio.sleep(0.2)
