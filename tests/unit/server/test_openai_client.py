"""OpenAI's own client against the app, over the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from km_registry.registry import Registry
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import Someone, train

MESSAGES = [{"role": "user", "content": "When does it open?"}]


@pytest.fixture
async def client(url: str, ada: Someone) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=ada.key, max_retries=0) as made:
        yield made


async def test_chat(client: AsyncOpenAI, ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    assert [model.id async for model in client.models.list()] == ["base", km.id, document_id]
    assert (await client.models.retrieve(document_id)).id == document_id
    whole = await client.chat.completions.create(
        model=document_id, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2
    )
    assert whole.choices[0].message.content.startswith(km.id)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = await client.chat.completions.create(
        model=document_id,
        messages=MESSAGES,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


async def test_completions(client: AsyncOpenAI) -> None:
    asked = {"model": "base", "prompt": ["one two", "three"], "temperature": 0, "logprobs": 1, "echo": True}
    whole = await client.completions.create(**asked)
    texts = {0: "", 1: ""}
    async for chunk in await client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}


async def test_the_synchronous_client(url: str, ada: Someone) -> None:
    def talk() -> tuple[str, str]:
        with OpenAI(base_url=f"{url}/v1", api_key=ada.key, max_retries=0) as client:
            whole = client.chat.completions.create(model="base", messages=MESSAGES, temperature=0)
            with client.chat.completions.stream(model="base", messages=MESSAGES, temperature=0) as stream:
                pieces = [event.delta for event in stream if event.type == "content.delta"]
        return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = await asyncio.to_thread(talk)
    assert whole == streamed != ""


async def test_structured_answers_are_parsed(client: AsyncOpenAI) -> None:
    class Opening(BaseModel):
        hour: int
        days: list[str]

    parsed = await client.chat.completions.parse(model="base", messages=MESSAGES, response_format=Opening)
    assert parsed.choices[0].message.parsed == Opening(hour=0, days=[])


async def test_errors_are_the_clients_own(
    client: AsyncOpenAI, ada: Someone, url: str, engine: ScriptedEngine
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="doc_none", messages=MESSAGES)
    assert missing.value.code == "not_found"
    with pytest.raises(openai.UnprocessableEntityError) as invalid:
        await client.chat.completions.create(model="base", messages=MESSAGES, temperature=9, stream=True)
    assert invalid.value.param == "temperature"
    document_id = await ada.upload()
    with pytest.raises(openai.ConflictError) as early:
        await client.chat.completions.create(model=document_id, messages=MESSAGES)
    assert early.value.code == "km_not_trained"
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="km_wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    engine.fail("The engine died.")
    with pytest.raises(openai.InternalServerError) as dead:
        await client.chat.completions.create(model="base", messages=MESSAGES)
    assert (dead.value.status_code, dead.value.code) == (503, "engine_unavailable")


async def test_a_stream_that_is_left_ends_the_generation(
    client: AsyncOpenAI, ada: Someone, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    for model in ("base", document_id):
        engine.hold(after_tokens=1)
        stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        await anext(stream)
        assert len(engine.in_flight) == 1
        await stream.close()
        await asyncio.wait_for(engine.until_idle(), 10)
        assert len(engine.cancelled) == 1
        engine.cancelled.clear()
        engine.release()
    # Nothing holds the document back any more.
    assert (await ada.http.delete(f"/documents/{document_id}")).status_code == 200
