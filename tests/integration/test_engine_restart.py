"""A real engine whose process is killed: nobody hangs, and it comes back with the same adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import PreTrainedTokenizerBase

from server.engine.base import Adapter, EngineUnavailableError, GenerationRequest
from server.engine.vllm_engine import EngineConfig, VllmEngine
from server.engine_keeper import EngineKeeper

#: Far longer than it takes to notice; hanging is what must not happen.
SOON_S = 20


@pytest_asyncio.fixture
async def engine(embedded_model: Path) -> AsyncIterator[VllmEngine]:
    """One to be killed."""
    made = VllmEngine(
        EngineConfig(
            model=embedded_model,
            max_loras=2,
            max_model_len=512,
            kv_cache_bytes=64 * 2**20,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            dtype="float32",
        )
    )
    await made.start()
    yield made
    await made.close()


async def test_a_killed_engine_comes_back_with_its_adapters(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase, make_adapter: Callable[..., Adapter]
) -> None:
    def ask(adapter: Adapter | None, max_tokens: int = 12) -> GenerationRequest:
        prompt = tuple(tokenizer.encode("The capital of the island is"))
        return GenerationRequest(prompt, max_tokens, adapter=adapter, ignore_eos=True)

    adapters = [make_adapter(2001, seed=1), make_adapter(2002, seed=2)]
    before = [(await engine.generate(ask(adapter))).token_ids for adapter in (None, *adapters)]
    keeper = EngineKeeper(engine, max_restarts=1)
    stream = engine.stream(ask(adapters[0], 400))
    await anext(stream)

    async def rest() -> None:
        async for _ in stream:
            pass

    running = [
        asyncio.create_task(rest()),
        asyncio.create_task(engine.generate(ask(None, 400))),
        # Still being loaded, and about to be evicted, when the engine dies.
        asyncio.create_task(engine.generate(ask(make_adapter(2003, seed=3), 400))),
        asyncio.create_task(engine.evict(adapters[0])),
    ]
    await asyncio.sleep(0)
    for process in engine._processes:
        process.kill()
    keeping = asyncio.create_task(keeper.run(every_s=0.1))
    ends = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), SOON_S)
    assert [type(end) for end in ends] == [EngineUnavailableError] * 4
    # Whoever asks meanwhile is told at once.
    with pytest.raises(EngineUnavailableError):
        await engine.generate(ask(None))
    while keeper.reason is not None or not keeper.restarts:
        await asyncio.wait({keeping}, timeout=0.2)
        assert not keeping.done()
    after = [(await engine.generate(ask(adapter))).token_ids for adapter in (None, *adapters)]
    assert after == before
    assert (await engine.evict(adapters[0])).resident
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
