"""What every engine does. Subclassed for the scripted one here, for the real one in tests/integration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from itertools import chain

import pytest

from server.engine.base import (
    Adapter,
    AdapterGoneError,
    AdapterLoadError,
    Delta,
    Engine,
    EngineStatus,
    GenerationRequest,
    UnsupportedRequestError,
)

#: Makes a request of a text; `ask(text, max_tokens, **fields)`.
Ask = Callable[..., GenerationRequest]

QUESTION = "Write a sentence about the naïve café."
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["harbour", "market"]},
        "open": {"type": "boolean"},
        # No number without bounds: weights of chance may write digits for ever.
        "gates": {"enum": [1, 2, 3]},
    },
    "required": ["kind", "open", "gates"],
    "additionalProperties": False,
}


async def streamed(engine: Engine, request: GenerationRequest) -> list[Delta]:
    """All pieces of an answer."""
    async with aclosing(engine.stream(request)) as stream:
        return [delta async for delta in stream]


async def until(engine: Engine, holds: Callable[[EngineStatus], bool]) -> EngineStatus:
    """How the engine is, once that holds: it may be in another process, which is told a little later."""
    async with asyncio.timeout(30):
        while not holds(status := await engine.status()):  # noqa: ASYNC110  it has no event for it
            await asyncio.sleep(0.01)
    return status


class EngineContract:
    """Needs the fixtures `engine`, `ask`, `adapter` and `adapters`, more of them than there are slots."""

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"temperature": 0.9, "seed": 7},
            {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": True},
            {"stop": (" the", " says")},
            {"json_schema": json.dumps(SCHEMA)},
        ],
        ids=["greedy", "seeded", "logprobs", "stop", "schema"],
    )
    @pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
    async def test_a_stream_is_the_whole_answer_in_pieces(
        self, engine: Engine, ask: Ask, adapter: Adapter, fields: dict[str, object], adapted: bool
    ) -> None:
        request = ask(QUESTION, 24, adapter=adapter if adapted else None, **fields)
        whole = await engine.generate(request)
        deltas = await streamed(engine, request)
        assert "".join(delta.text for delta in deltas) == whole.text
        assert tuple(chain.from_iterable(delta.token_ids for delta in deltas)) == whole.token_ids
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == whole.finish_reason
        assert whole.prompt_tokens == len(request.prompt_token_ids)
        assert whole.first_token_s is not None
        if not request.logprobs:
            assert {delta.logprobs for delta in deltas} == {None} == {whole.logprobs}
            return
        told = [one for delta in deltas for one in delta.logprobs or ()]
        assert [one.token_id for one in told] == [one.token_id for one in whole.logprobs or ()]
        assert [one.logprob for one in told] == pytest.approx(
            [one.logprob for one in whole.logprobs or ()], abs=1e-3
        )
        assert len(deltas[0].prompt_logprobs or ()) == len(request.prompt_token_ids) - 1

    async def test_logprobs_of_what_was_written_and_read(
        self, engine: Engine, ask: Ask, adapter: Adapter
    ) -> None:
        request = ask(QUESTION, 6, adapter=adapter, logprobs=True, prompt_logprobs=True, top_logprobs=3)
        found = await engine.generate(request)
        assert found.logprobs is not None
        assert found.prompt_logprobs is not None
        assert tuple(one.token_id for one in found.logprobs) == found.token_ids
        assert tuple(one.token_id for one in found.prompt_logprobs) == request.prompt_token_ids[1:]
        for one in found.logprobs + found.prompt_logprobs:
            values = [logprob for _, logprob in one.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert one.logprob <= values[0] <= 0
        # Greedy: what was written is what was likeliest.
        assert [one.top[0] for one in found.logprobs] == [
            (one.token_id, one.logprob) for one in found.logprobs
        ]

    @pytest.mark.parametrize("logprobs", [False, True])
    async def test_a_prompt_is_scored_without_writing(self, engine: Engine, ask: Ask, logprobs: bool) -> None:
        found = await engine.generate(ask(QUESTION, 0, prompt_logprobs=True, logprobs=logprobs))
        assert not found.logprobs
        assert (found.text, found.token_ids, found.finish_reason) == ("", (), "length")
        assert len(found.prompt_logprobs or ()) == found.prompt_tokens - 1
        assert {one.top for one in found.prompt_logprobs or ()} == {()}

    async def test_the_seed_decides(self, engine: Engine, ask: Ask) -> None:
        request = ask(QUESTION, 12, temperature=1.0, seed=3)
        first, again = await engine.generate(request), await engine.generate(request)
        other = await engine.generate(replace(request, seed=4))
        assert first.token_ids == again.token_ids != other.token_ids

    async def test_limits_end_an_answer(self, engine: Engine, ask: Ask) -> None:
        whole = await engine.generate(ask(QUESTION, 3))
        assert (len(whole.token_ids), whole.finish_reason) == (3, "length")
        whole = await engine.generate(ask(QUESTION, 12))
        word = whole.text.split()[1]
        stopped = await engine.generate(ask(QUESTION, 12, stop=(word,)))
        assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(word)], "stop")

    async def test_answers_are_held_to_a_schema(self, engine: Engine, ask: Ask, adapter: Adapter) -> None:
        for of in (None, adapter):
            found = await engine.generate(ask(QUESTION, 60, adapter=of, json_schema=json.dumps(SCHEMA)))
            value = json.loads(found.text)
            assert found.finish_reason == "stop"
            assert set(value) == {"kind", "open", "gates"}
            assert value["kind"] in ("harbour", "market")
            assert type(value["open"]) is bool
            assert type(value["gates"]) is int

    async def test_a_schema_that_makes_no_sense_is_refused(self, engine: Engine, ask: Ask) -> None:
        with pytest.raises(UnsupportedRequestError) as refused:
            await engine.generate(ask(QUESTION, 8, json_schema='{"type": "nonsense"}'))
        assert refused.value.param == "response_format"
        assert (await engine.generate(ask(QUESTION, 2))).finish_reason == "length"

    async def test_a_stream_that_is_closed_holds_nothing(
        self, engine: Engine, ask: Ask, adapter: Adapter
    ) -> None:
        async with aclosing(engine.stream(ask(QUESTION, 60, adapter=adapter))) as stream:
            await anext(stream)
            eviction = asyncio.create_task(engine.evict(adapter))
            await asyncio.sleep(0)
            assert not eviction.done()
        assert (await asyncio.wait_for(eviction, 30)).resident

    async def test_status_tells_requests_and_adapters(
        self, engine: Engine, ask: Ask, adapter: Adapter
    ) -> None:
        before = await engine.status()
        async with aclosing(engine.stream(ask(QUESTION, 60, adapter=adapter))) as stream:
            await anext(stream)
            during = await engine.status()
        await engine.generate(ask(QUESTION, 2, adapter=adapter))
        after = await until(engine, lambda status: status.adapters.pinned == 0)
        assert (before.waiting, before.answering, before.adapters.pinned) == (0, 0, 0)
        assert (during.waiting + during.answering, during.adapters.pinned) == (1, 1)
        assert (after.waiting, after.answering, after.adapters.pinned) == (0, 0, 0)
        for status in (before, during, after):
            counts = status.adapters
            assert counts.pinned + counts.idle + counts.free == counts.slots
            assert min(counts.pinned, counts.idle, counts.free) >= 0
        assert after.adapters.found_on_disk - before.adapters.found_on_disk == 1
        assert after.adapters.found_in_slot - before.adapters.found_in_slot == 1
        assert after.adapters.loads - before.adapters.loads == 1
        assert after.adapters.swaps - before.adapters.swaps == 1
        await until(engine, lambda _: adapter.name in engine.in_slots())
        eviction = await engine.evict(adapter)
        assert (eviction.from_slot, eviction.from_memory) == (True, True)
        assert not (await engine.evict(adapter)).resident
        assert (await engine.status()).adapters.in_memory == before.adapters.in_memory

    async def test_more_adapters_than_slots_take_turns(
        self, engine: Engine, ask: Ask, adapters: list[Adapter]
    ) -> None:
        before = (await engine.status()).adapters
        assert len(adapters) > before.slots
        alone = [(await engine.generate(ask(QUESTION, 6, adapter=one))).token_ids for one in adapters]
        requests = [ask(QUESTION, 6, adapter=one) for one in adapters * 2]
        together = await asyncio.gather(*(engine.generate(request) for request in requests))
        assert [one.token_ids for one in together] == alone * 2
        after = (await engine.status()).adapters
        # Each was loaded once, and came back to a slot from memory.
        assert after.loads - before.loads == len(adapters)
        assert after.found_in_memory > before.found_in_memory
        assert after.left_slot > before.left_slot
        assert (after.waiting, after.pinned) == (0, 0)
        for one in adapters:
            assert (await engine.evict(one)).resident
        assert (await engine.status()).adapters.in_memory == before.in_memory

    async def test_one_that_is_prefetched_is_not_loaded_again(
        self, engine: Engine, ask: Ask, adapter: Adapter
    ) -> None:
        before = (await engine.status()).adapters
        assert await engine.prefetch(adapter)
        assert await engine.prefetch(adapter)
        await engine.generate(ask(QUESTION, 2, adapter=adapter))
        after = (await engine.status()).adapters
        assert (
            after.found_in_memory + after.found_on_disk - before.found_in_memory - before.found_on_disk == 1
        )
        assert after.loads - before.loads == 1
        assert (await engine.evict(adapter)).resident

    async def test_who_waits_for_a_retired_adapter_is_sent_away(
        self, engine: Engine, ask: Ask, adapters: list[Adapter]
    ) -> None:
        slots = (await engine.status()).adapters.slots
        *others, last = adapters[: slots + 1]
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(aclosing(engine.stream(ask(QUESTION, 100, adapter=one))))
                for one in others
            ]
            for stream in streams:
                await anext(stream)
            waiting = asyncio.create_task(engine.generate(ask(QUESTION, 2, adapter=last)))
            await until(engine, lambda status: status.adapters.waiting == 1)
            assert await engine.retire(last) == 1
            with pytest.raises(AdapterGoneError):
                await waiting
            with pytest.raises(AdapterGoneError):
                await engine.generate(ask(QUESTION, 2, adapter=last))
            # Those in flight go on.
            assert await engine.retire(others[0]) == 0
            await anext(streams[0])
        for one in adapters:
            await engine.evict(one)

    async def test_files_that_are_gone(self, engine: Engine, ask: Ask, adapter: Adapter) -> None:
        missing = replace(adapter, path=adapter.path / "gone")
        with pytest.raises(AdapterLoadError, match=adapter.name):
            await engine.generate(ask(QUESTION, 2, adapter=missing))
        status = await engine.status()
        assert status.adapters.pinned == 0

    async def test_lengths_that_do_not_fit(self, engine: Engine) -> None:
        for prompt in ((), (1,) * engine.max_model_len):
            with pytest.raises(ValueError, match="prompt"):
                await engine.generate(GenerationRequest(prompt, 1))
