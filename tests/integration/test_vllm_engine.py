"""The real engine: adapters stay apart, leave without a trace, and requests behave as the port promises."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from server.engine.base import (
    PRIORITY_SYNTHESIS,
    PRIORITY_USER,
    Adapter,
    EngineUnavailableError,
    Eviction,
    GenerationRequest,
)
from server.engine.cpu_lora import UnsafeEngineError
from server.engine.vllm_engine import EngineConfig, VllmEngine

_salts = (f"test-{i}" for i in itertools.count())
_ids = itertools.count(1)
TOPICS = ("the sea and its ships", "a village below the mountain", "how bread is baked", "the first railway")


@pytest.fixture(scope="session")
def ask(tokenizer: PreTrainedTokenizerBase) -> Callable[..., GenerationRequest]:
    """A request that shares no cached prefix with any other."""

    def make(text: str, max_tokens: int = 16, **options: object) -> GenerationRequest:
        tokens = tuple(tokenizer.encode(text))
        options.setdefault("cache_salt", next(_salts))
        options.setdefault("ignore_eos", True)
        return GenerationRequest(tokens, max_tokens, **options)

    return make


@pytest.fixture
def adapters(make_adapter: Callable[..., Adapter]) -> tuple[Adapter, Adapter]:
    return make_adapter(next(_ids), seed=1), make_adapter(next(_ids), seed=2)


async def test_mixed_batches_answer_like_each_request_alone(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    def requests() -> list[GenerationRequest]:
        cases = itertools.product((None, *adapters), TOPICS, (1, 20))
        return [
            ask(f"Tell me about {topic}. " * repeat, 6 + 3 * TOPICS.index(topic), adapter=adapter)
            for adapter, topic, repeat in cases
        ]

    alone = [(await engine.generate(request)).token_ids for request in requests()]
    together = [answer.token_ids for answer in await asyncio.gather(*map(engine.generate, requests()))]
    assert len(alone) == 24
    assert together == alone
    base, first, second = alone[:8], alone[8:16], alone[16:]
    for of_base, of_first, of_second in zip(base, first, second, strict=True):
        assert len({of_base, of_first, of_second}) == 3


async def test_scores_are_the_same_alone_and_in_mixed_batches(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    def requests() -> list[GenerationRequest]:
        return [
            ask(f"Once upon a time there was {topic}.", 0, adapter=adapter, prompt_logprobs=True)
            for topic in TOPICS
            for adapter in (None, *adapters)
        ]

    alone = [await engine.generate(request) for request in requests()]
    together = await asyncio.gather(*map(engine.generate, requests()))
    sums = set()
    for one, other in zip(alone, together, strict=True):
        assert one.prompt_logprobs is not None
        assert len(one.prompt_logprobs) == one.prompt_tokens - 1
        values = [scored.logprob for scored in one.prompt_logprobs]
        assert all(math.isfinite(value) and value <= 0 for value in values)
        assert [scored.logprob for scored in other.prompt_logprobs] == pytest.approx(values, abs=1e-3)
        sums.add(round(sum(values), 2))
    assert len(sums) == len(alone)


async def test_evicted_adapters_leave_no_trace_and_can_come_back(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    question, salt = "The capital of the island is", next(_salts)
    adapter = adapters[0]

    async def answer(adapter: Adapter | None) -> tuple[int, ...]:
        return (await engine.generate(ask(question, adapter=adapter, cache_salt=salt))).token_ids

    base = await answer(None)
    adapted = await answer(adapter)
    assert adapted != base
    assert (await engine.evict(adapter)) == Eviction(adapter.name, True, True, prefixes_forgotten=True)
    assert not (await engine.evict(adapter)).resident
    assert await answer(None) == base
    again = Adapter("km-again", next(_ids), adapter.path)
    assert await answer(again) == adapted
    assert (await engine.evict(again)).resident
    shutil.rmtree(adapter.path)
    assert await answer(None) == base


async def test_eviction_waits_for_requests_in_flight(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    adapter, other = adapters
    async with aclosing(engine.stream(ask("Count to a thousand:", 60, adapter=adapter))) as stream:
        await anext(stream)
        neighbour = asyncio.create_task(engine.generate(ask("And you?", 60, adapter=other)))
        eviction = asyncio.create_task(engine.evict(adapter))
        deltas = [delta async for delta in stream]
        assert deltas[-1].finish_reason == "length"
        assert not eviction.done()
    # The neighbour's prefixes are cached still: it is running.
    assert await eviction == Eviction(adapter.name, True, True, prefixes_forgotten=False)
    assert len((await neighbour).token_ids) == 60


async def test_cancelling_aborts_the_request_in_the_engine(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async with aclosing(engine.stream(ask("Forever and ever", 900, adapter=adapters[0]))) as stream:
            async for _ in stream:
                started.set()

    tasks = [asyncio.create_task(read()), asyncio.create_task(engine.generate(ask("On and on", 900)))]
    await started.wait()
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*tasks, return_exceptions=True)
    )
    # The engine forgets cached prefixes only when no request holds memory any more.
    assert await engine._llm.reset_prefix_cache() is True
    assert (await engine.evict(adapters[0])).resident


async def test_what_is_written_scores_like_what_is_read(
    engine: VllmEngine, ask: Callable[..., GenerationRequest], adapters: tuple[Adapter, Adapter]
) -> None:
    """The log-probabilities that come with an answer are those that a prompt of it gets."""
    for adapter in (None, adapters[0]):
        request = ask("The bread is", 12, adapter=adapter, logprobs=True, temperature=0.7, seed=5)
        written = await engine.generate(request)
        whole = replace(
            request,
            prompt_token_ids=request.prompt_token_ids + written.token_ids,
            max_tokens=0,
            logprobs=False,
            prompt_logprobs=True,
            cache_salt=next(_salts),
        )
        read = (await engine.generate(whole)).prompt_logprobs[-12:]
        assert [one.logprob for one in written.logprobs] == pytest.approx(
            [one.logprob for one in read], abs=1e-3
        )


async def test_penalties_count(engine: VllmEngine, ask: Callable[..., GenerationRequest]) -> None:
    plain = await engine.generate(ask("na na na na na na", 24))
    varied = await engine.generate(ask("na na na na na na", 24, frequency_penalty=2.0, presence_penalty=2.0))
    assert len(set(varied.token_ids)) > len(set(plain.token_ids))


async def test_an_abandoned_stream_stops_within_a_step(
    engine: VllmEngine, ask: Callable[..., GenerationRequest]
) -> None:
    """Counted in the engine itself, with a neighbour's tokens as the clock."""

    async def steps() -> dict[str, int]:
        (found,) = await engine._llm.collective_rpc("km_requests")
        return found

    async with aclosing(engine.stream(ask("And on it goes", 300))) as neighbour:
        await anext(neighbour)
        (clock,) = await steps()
        async with aclosing(engine.stream(ask("Forever and ever", 300))) as stream:
            for _ in range(5):
                await anext(stream)
            before = await steps()
        after = await steps()
        for _ in range(3):
            await anext(neighbour)
        later = await steps()
        (abandoned,) = before.keys() - {clock}
        # Where the engine still knew it when the closing had come through, at most one step was under way.
        assert after.get(abandoned, 0) - before[abandoned] <= after[clock] - before[clock]
        assert set(later) == {clock}
        assert later[clock] > after[clock]
    assert await engine._llm.reset_prefix_cache() is True


async def test_users_overtake_queued_synthesis(
    engine: VllmEngine, ask: Callable[..., GenerationRequest]
) -> None:
    order: list[str] = []

    async def run(name: str, request: GenerationRequest) -> None:
        await engine.generate(request)
        order.append(name)

    synthesis = [
        asyncio.create_task(run("synthesis", ask(f"Invent question {i}", 24, priority=PRIORITY_SYNTHESIS)))
        for i in range(64)
    ]
    await asyncio.wait(synthesis, return_when=asyncio.FIRST_COMPLETED)
    await run("user", ask("What is the time?", 8, priority=PRIORITY_USER))
    await asyncio.gather(*synthesis)
    assert order.index("user") <= 40
    assert len(order) == 65


async def test_seeded_requests_with_long_prompts_leave_the_engine_alive(
    engine: VllmEngine, ask: Callable[..., GenerationRequest]
) -> None:
    """vLLM cannot rewind a CPU generator: a seeded prompt that it cut over two steps ended the engine."""
    requests = [
        ask(f"{number} {TOPICS[0]} " * 80, 4, temperature=0.8, top_p=0.9, seed=7) for number in range(12)
    ]
    answers = await asyncio.gather(*map(engine.generate, requests))
    assert [len(answer.token_ids) for answer in answers] == [4] * 12
    await engine.check()


async def test_prompts_must_leave_room(engine: VllmEngine, ask: Callable[..., GenerationRequest]) -> None:
    assert engine.max_model_len == 1024
    for prompt in ((), (5,) * 1024):
        with pytest.raises(ValueError, match="prompt"):
            await engine.generate(GenerationRequest(prompt, 1))
    longest = await engine.generate(GenerationRequest((5,) * 1000, 500, ignore_eos=True))
    assert (len(longest.token_ids), longest.finish_reason) == (24, "length")


async def test_start_refuses_to_serve_without_the_plugin(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    engine = VllmEngine(EngineConfig(model=embedded_model))
    with pytest.raises(UnsafeEngineError, match="Unset VLLM_PLUGINS"):
        await engine.start()
    with pytest.raises(EngineUnavailableError, match="not running"):
        await engine.generate(GenerationRequest((1,), 1))


async def test_start_names_a_model_it_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=str(tmp_path)):
        await VllmEngine(EngineConfig(model=tmp_path)).start()
