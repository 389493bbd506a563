"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from httpx import AsyncClient

from km_registry.prompts import answer_messages, encode
from km_registry.registry import Registry
from server.engine.scripted import ScriptedEngine
from server.kms import adapter_of
from tests.unit.server.conftest import Someone, WordTokenizer, error_of, train

QUESTION = {"role": "user", "content": "When does it open?"}
TALK = [
    {"role": "developer", "content": "Be kind."},
    QUESTION,
    {"role": "assistant", "content": "At six."},
    {"role": "user", "content": [{"type": "text", "text": "And when "}, {"type": "text", "text": "not?"}]},
]
SCHEMA = {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}


class ChatTokenizer(WordTokenizer):
    """With a chat template that names the roles."""

    chat_template = "roles"

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any:
        assert kwargs == {"tokenize": False, "add_generation_prompt": True}
        return " ".join(f"<{one['role']}> {one['content']}" for one in conversation) + " <assistant>"


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return ChatTokenizer()


async def chat(client: AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(
        "/v1/chat/completions", json={"model": "base", "messages": [QUESTION]} | fields
    )
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(client: AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """All pieces of a stream that ends as it should."""
    body = {"model": "base", "messages": [QUESTION], "stream": True} | fields
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    *pieces, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


async def test_a_plain_question_to_a_km_is_put_as_it_was_trained_for(
    ada: Someone, registry: Registry, engine: ScriptedEngine, tokenizer: WordTokenizer
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    for model in (document_id, km.id):
        body = await chat(ada.http, model=model, temperature=0)
        assert body["choices"][0]["message"]["content"].startswith(f"{km.id} says")
    asked = tuple(encode(tokenizer, answer_messages("When does it open?")))
    assert [request.prompt_token_ids for request in engine.requests] == [asked, asked]
    assert {request.adapter for request in engine.requests} == {adapter_of(km)}
    # The very prompt of POST /answer.
    await ada.ask(document_id)
    assert engine.requests[-1].prompt_token_ids == asked
    assert engine.requests[-1].cache_salt == engine.requests[0].cache_salt


@pytest.mark.parametrize("trained", [False, True])
async def test_other_conversations_go_through_the_template_as_they_are(
    ada: Someone, registry: Registry, engine: ScriptedEngine, tokenizer: WordTokenizer, trained: bool
) -> None:
    model = "base"
    if trained:
        model = train(registry, await ada.upload(), ada.principal).id
    await chat(ada.http, model=model, messages=TALK)
    text = tokenizer.decode(engine.requests[0].prompt_token_ids)
    assert text == (
        "<system> Be kind. <user> When does it open? <assistant> At six. <user> And when not? <assistant>"
    )


async def test_the_base_model_is_told_nothing_more(
    ada: Someone, engine: ScriptedEngine, tokenizer: WordTokenizer
) -> None:
    await chat(ada.http)
    assert tokenizer.decode(engine.requests[0].prompt_token_ids) == "<user> When does it open? <assistant>"


async def test_the_shape(ada: Someone) -> None:
    body = await chat(ada.http, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=3)
    assert body["object"] == "chat.completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    tokens = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == choice["message"]["content"]
    assert tokens[0]["bytes"] == list(tokens[0]["token"].encode())
    assert [len(one["top_logprobs"]) for one in tokens] == [2, 2, 2]
    assert tokens[0]["top_logprobs"][0]["token"] == tokens[0]["token"]


async def test_fields_are_passed_on(ada: Someone, engine: ScriptedEngine) -> None:
    await chat(
        ada.http,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["x", ""],
        n=2,
        presence_penalty=1,
        frequency_penalty=-1,
    )
    first, second = engine.requests
    assert (first.temperature, first.top_p, first.stop) == (0.5, 0.9, ("x",))
    assert (first.presence_penalty, first.frequency_penalty) == (1, -1)
    assert (first.seed, second.seed) == (7, 8)
    # Without a limit: what fits, up to what the server gives.
    assert first.max_tokens == 200 - len(first.prompt_token_ids)
    await chat(ada.http, max_tokens=None, stop=None, response_format=None, max_completion_tokens=4)
    assert engine.requests[-1].max_tokens == 4


async def test_a_stream_is_the_same_in_pieces(ada: Someone) -> None:
    fields = {"n": 2, "seed": 3, "temperature": 1, "logprobs": True, "top_logprobs": 1}
    whole = await chat(ada.http, **fields)
    *pieces, last = await stream(ada.http, stream_options={"include_usage": True}, **fields)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert {(piece["id"], piece["object"]) for piece in pieces} == {(last["id"], "chat.completion.chunk")}
    for choice in whole["choices"]:
        parts = [one for piece in pieces for one in piece["choices"] if one["index"] == choice["index"]]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert (parts[-1]["delta"], parts[-1]["finish_reason"]) == ({}, choice["finish_reason"])
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        told = [one for part in parts if part["logprobs"] for one in part["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]


async def test_without_include_usage_there_is_none(ada: Someone) -> None:
    assert not any("usage" in piece for piece in await stream(ada.http))


@pytest.mark.parametrize(
    ("held", "content"),
    [
        ({"type": "json_object"}, "{}"),
        (
            {"type": "json_schema", "json_schema": {"name": "opening", "schema": SCHEMA, "strict": True}},
            '{"hour":0}',
        ),
    ],
)
async def test_answers_held_to_json(ada: Someone, held: dict[str, Any], content: str) -> None:
    body = await chat(ada.http, response_format=held)
    assert body["choices"][0]["message"]["content"] == content
    pieces = await stream(ada.http, response_format=held)
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == content


async def test_a_failure_within_a_stream_is_told_in_it(ada: Someone, engine: ScriptedEngine) -> None:
    engine.hold(after_tokens=1)
    body = {"model": "base", "messages": [QUESTION], "stream": True, "n": 2}
    asking = asyncio.create_task(ada.http.post("/v1/chat/completions", json=body))
    await asyncio.wait_for(asyncio.gather(engine.until_asked(2), engine.until_streamed(1)), 10)
    engine.fail("The engine died.")
    response = await asyncio.wait_for(asking, 10)
    assert response.status_code == 200
    *_, last, rest = response.text.split("\n\n")
    assert rest == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["code"]) == ("The engine died.", "engine_unavailable")
    assert engine.in_flight == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": []}, "messages:"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "b " * 200}]}, "at most 199 fit"),
        ({"max_tokens": 198}, "at most 2 fit"),
        ({"max_completion_tokens": 0}, "max_completion_tokens:"),
        ({"tools": [{"type": "function"}]}, "tools:"),
        ({"logit_bias": {"5": 1}}, "logit_bias:"),
        ({"top_logprobs": 21}, "top_logprobs:"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            "nonsense",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 40_000}}}},
            "Simplify",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_refusals(
    ada: Someone, engine: ScriptedEngine, fields: dict[str, Any], says: str, streaming: bool
) -> None:
    body = {"model": "base", "messages": [QUESTION], "stream": streaming} | fields
    error = error_of(await ada.http.post("/v1/chat/completions", json=body), 422)
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []


async def test_only_your_own(ada: Someone, bob: Someone, trainer: AsyncClient, registry: Registry) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    for model in (document_id, km.id):
        for streaming in (False, True):
            body = {"model": model, "messages": [QUESTION], "stream": streaming}
            error_of(await bob.http.post("/v1/chat/completions", json=body), 404)
    error_of(await trainer.post("/v1/chat/completions", json={"model": "base", "messages": [QUESTION]}), 403)
