"""A bound on users' requests and on their time; synthetic text is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from server.app import AppState
from server.engine.base import PRIORITY_SYNTHESIS, GenerationRequest
from server.engine.guarded import EngineBusyError, GuardedEngine, RequestTimeoutError
from server.engine.scripted import ScriptedEngine
from tests.contract.engine_contract import EngineContract
from tests.contract.test_engine_contract import adapter, adapters, ask  # noqa: F401  fixtures
from tests.unit.server.conftest import Someone, WordTokenizer, error_of

REQUEST = GenerationRequest((1,), 9)
SYNTHESIS = GenerationRequest((1,), 9, priority=PRIORITY_SYNTHESIS)


@pytest.fixture
def inner(tokenizer: WordTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, max_model_len=200)


class TestGuardedEngine(EngineContract):
    """Does what every engine does."""

    @pytest.fixture
    def engine(self, inner: ScriptedEngine) -> GuardedEngine:
        return GuardedEngine(inner, max_requests=20, max_requests_per_user=20, timeout_s=60)


@pytest.fixture
async def full(inner: ScriptedEngine) -> AsyncIterator[GuardedEngine]:
    """With as many requests in flight as it takes."""
    guarded = GuardedEngine(inner, max_requests=2, max_requests_per_user=2, timeout_s=60)
    inner.hold()
    stream = guarded.stream(REQUEST)
    running = [asyncio.create_task(guarded.generate(REQUEST)), asyncio.ensure_future(anext(stream))]
    await inner.until_asked(2)
    yield guarded
    inner.release()
    await asyncio.gather(*running)
    await stream.aclose()
    assert guarded.in_flight == 0
    await guarded.generate(REQUEST)


async def test_no_more_than_the_bound(full: GuardedEngine, inner: ScriptedEngine) -> None:
    with pytest.raises(EngineBusyError) as refused:
        await full.generate(REQUEST)
    assert 1 <= refused.value.retry_after_s <= 60
    with pytest.raises(EngineBusyError):
        async with aclosing(full.stream(REQUEST)) as stream:
            await anext(stream)
    assert full.refused == 2
    assert len(inner.requests) == 2


async def test_synthetic_text_is_not_counted(full: GuardedEngine, inner: ScriptedEngine) -> None:
    writing = asyncio.create_task(full.generate(SYNTHESIS))
    await inner.until_asked(3)
    assert full.in_flight == 2
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_requests_that_take_too_long(inner: ScriptedEngine) -> None:
    guarded = GuardedEngine(inner, max_requests=9, max_requests_per_user=9, timeout_s=0.0)
    inner.hold(after_tokens=1)
    with pytest.raises(RequestTimeoutError, match="longer than 0 seconds"):
        await guarded.generate(REQUEST)
    async with aclosing(guarded.stream(REQUEST)) as stream:
        await anext(stream)
        with pytest.raises(RequestTimeoutError):
            await anext(stream)
    assert guarded.timed_out == 2
    assert inner.in_flight == []


async def test_over_http(ada: Someone, state: AppState, engine: ScriptedEngine) -> None:
    state.guarded._max_requests = 1
    engine.hold()
    body = {"model": "base", "prompt": "a"}
    first = asyncio.create_task(ada.http.post("/v1/completions", json=body))
    await asyncio.wait_for(engine.until_asked(1), 10)
    for streaming in (False, True):
        response = await ada.http.post("/v1/completions", json=body | {"stream": streaming})
        assert error_of(response, 503)["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
    document_id = await ada.upload()
    assert error_of(await ada.ask(document_id, "icl"), 503)["code"] == "overloaded"
    engine.release()
    assert (await first).status_code == 200
    state.guarded._timeout_s = 0.0
    engine.hold()
    assert error_of(await ada.http.post("/v1/completions", json=body), 504)["code"] == "timeout"


async def test_one_user_cannot_fill_the_queue(
    ada: Someone, bob: Someone, state: AppState, engine: ScriptedEngine
) -> None:
    state.guarded._max_per_user = 2
    engine.hold()
    body = {"model": "base", "prompt": ["a", "b"]}
    first = asyncio.create_task(ada.http.post("/v1/completions", json=body))
    await asyncio.wait_for(engine.until_asked(2), 10)
    response = await ada.http.post("/v1/completions", json=body)
    assert error_of(response, 429)["code"] == "too_many_requests"
    assert int(response.headers["retry-after"]) >= 1
    other = asyncio.create_task(bob.http.post("/v1/completions", json=body))
    await asyncio.wait_for(engine.until_asked(4), 10)
    engine.release()
    assert [(await one).status_code for one in (first, other)] == [200, 200]
    assert (await ada.http.post("/v1/completions", json=body)).status_code == 200


async def test_more_at_once_than_ever_fit(ada: Someone, state: AppState) -> None:
    state.completer._generating._most = 3
    body = {"model": "base", "prompt": ["a", "b"], "n": 2}
    error = error_of(await ada.http.post("/v1/completions", json=body), 422)
    assert (error["param"], "4 answers" in error["message"]) == ("n", True)
