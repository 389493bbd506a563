"""The scripted engine keeps the rules of the port."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from server.engine.base import Adapter, AdapterLoadError, EngineUnavailableError, GenerationRequest
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import WordTokenizer


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Adapter("km_a", 1, tmp_path)


async def test_replies_depend_on_prompt_adapter_and_seed(engine: ScriptedEngine, adapter: Adapter) -> None:
    async def text(prompt: int = 1, adapter: Adapter | None = None, seed: int | None = None) -> str:
        request = GenerationRequest((prompt,), 9, adapter=adapter, seed=seed, temperature=1)
        return (await engine.generate(request)).text

    texts = [await text(), await text(2), await text(adapter=adapter), await text(seed=1)]
    assert len(set(texts)) == 4
    assert await text() == texts[0]


async def test_a_stream_can_be_held_between_tokens(engine: ScriptedEngine) -> None:
    request = GenerationRequest((1,), 9)
    engine.hold(after_tokens=1)
    async with aclosing(engine.stream(request)) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waiting.done()
        engine.release()
        await waiting
    assert engine.cancelled == [request]
    assert engine.in_flight == []


async def test_adapters(engine: ScriptedEngine, adapter: Adapter, tmp_path: Path) -> None:
    await engine.generate(GenerationRequest((1,), 9, adapter=adapter))
    assert engine.resident == {"km_a": adapter}
    with pytest.raises(ValueError, match="another id or path"):
        await engine.generate(GenerationRequest((1,), 9, adapter=Adapter("km_a", 2, tmp_path)))
    with pytest.raises(AdapterLoadError, match="none"):
        await engine.generate(GenerationRequest((1,), 9, adapter=Adapter("km_b", 2, tmp_path / "none")))
    assert (await engine.evict(adapter)).resident
    assert not (await engine.evict(adapter)).resident


async def test_eviction_waits(engine: ScriptedEngine, adapter: Adapter) -> None:
    engine.hold()
    running = asyncio.create_task(engine.generate(GenerationRequest((1,), 9, adapter=adapter)))
    await engine.until_asked(1)
    evicting = asyncio.create_task(engine.evict(adapter))
    await asyncio.sleep(0)
    assert not evicting.done()
    running.cancel()
    assert await asyncio.wait_for(evicting, 5)
    assert len(engine.cancelled) == 1


async def test_unavailable(tokenizer: WordTokenizer) -> None:
    engine = ScriptedEngine(tokenizer)
    await engine.close()
    with pytest.raises(EngineUnavailableError):
        await engine.generate(GenerationRequest((1,), 9))
    await engine.start()
    await engine.check()
