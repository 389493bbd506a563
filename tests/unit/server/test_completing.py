"""POST /v1/completions and GET /v1/models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from httpx import AsyncClient

from km_registry.registry import Registry
from server.engine.base import PRIORITY_SYNTHESIS, PRIORITY_USER, GenerationRequest
from server.engine.scripted import ScriptedEngine
from server.kms import adapter_of
from tests.unit.server.conftest import Someone, WordTokenizer, error_of, train


async def complete(client: AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"model": "base", "prompt": "one two"} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_one_text(ada: Someone, engine: ScriptedEngine, tokenizer: WordTokenizer) -> None:
    body = await complete(ada.http, temperature=0, best_of=1, user="someone")
    (request,) = engine.requests
    assert request == GenerationRequest(
        prompt_token_ids=tuple(tokenizer.encode("one two")),
        max_tokens=16,
        cache_salt=ada.principal.user_id,
        caller=ada.principal.user_id,
        priority=PRIORITY_USER,
        claim=request.claim,
    )
    assert request.claim is not None
    assert request.claim.principal.user_id == ada.principal.user_id
    assert body["object"] == "text_completion"
    assert body["model"] == "base"
    (choice,) = body["choices"]
    assert choice["text"].startswith("base says ")
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


async def test_fields_are_passed_on(ada: Someone, engine: ScriptedEngine) -> None:
    body = await complete(ada.http, temperature=0.5, top_p=0.9, seed=7, stop=" says", max_tokens=5)
    (request,) = engine.requests
    assert (request.temperature, request.top_p, request.seed) == (0.5, 0.9, 7)
    assert (request.stop, request.max_tokens) == ((" says",), 5)
    assert body["choices"][0]["text"] == "base"


async def test_token_ids(ada: Someone, engine: ScriptedEngine) -> None:
    body = await complete(ada.http, prompt=[3, 1, 2])
    assert engine.requests[0].prompt_token_ids == (3, 1, 2)
    assert body["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("prompt", [["a", "b c", "d"], [[1], [2, 3], [4]]])
async def test_many_prompts_keep_their_order(ada: Someone, engine: ScriptedEngine, prompt: list[Any]) -> None:
    body = await complete(ada.http, prompt=prompt, n=2, seed=5, temperature=1)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [request.seed for request in engine.requests] == [5, 6, 5, 6, 5, 6]
    assert len({choice["text"] for choice in body["choices"]}) == 6
    alone = [await complete(ada.http, prompt=one, n=2, seed=5, temperature=1) for one in prompt]
    texts = [choice["text"] for one in alone for choice in one["choices"]]
    assert texts == [choice["text"] for choice in body["choices"]]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 24, "total_tokens": 28}


async def test_a_batch_runs_together(ada: Someone, engine: ScriptedEngine) -> None:
    engine.hold()
    asking = asyncio.create_task(complete(ada.http, prompt=["x"] * 256))
    await asyncio.wait_for(engine.until_asked(256), 10)
    engine.release()
    assert len((await asking)["choices"]) == 256


async def test_scoring_a_text(ada: Someone, engine: ScriptedEngine) -> None:
    body = await complete(ada.http, prompt="one two three", max_tokens=0, echo=True, logprobs=1)
    (choice,) = body["choices"]
    assert choice["text"] == "one two three"
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["one", " two", " three"]
    assert logprobs["text_offset"] == [0, 3, 7]
    assert logprobs["token_logprobs"] == [None, -0.25, -0.375]
    assert len(engine.requests) == 1
    assert body["usage"]["completion_tokens"] == 0


async def test_logprobs_of_what_was_written(ada: Someone, engine: ScriptedEngine) -> None:
    body = await complete(ada.http, logprobs=0, max_tokens=3)
    logprobs = body["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == body["choices"][0]["text"]
    assert len(logprobs["token_logprobs"]) == 3
    assert logprobs["top_logprobs"] is None
    assert len(engine.requests) == 1
    echoed = (await complete(ada.http, logprobs=2, max_tokens=3, echo=True))["choices"][0]
    assert echoed["text"] == "one two" + body["choices"][0]["text"]
    assert echoed["logprobs"]["token_logprobs"] == [None, -0.25, *logprobs["token_logprobs"]]
    assert echoed["logprobs"]["text_offset"][2] == len("one two")
    first, *tops = echoed["logprobs"]["top_logprobs"]
    assert first is None
    assert [max(top.values()) for top in tops] == echoed["logprobs"]["token_logprobs"][1:]
    assert {len(top) for top in tops} == {2}


async def stream(client: AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """All pieces of a stream that ends as it should."""
    body = {"model": "base", "prompt": "one two", "stream": True} | fields
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "echo": True}, {"max_tokens": 0, "echo": True}])
async def test_a_stream_is_the_same_in_pieces(ada: Someone, fields: dict[str, Any]) -> None:
    fields = {"prompt": ["one two", "three"], "n": 2, "seed": 3, "temperature": 1} | fields
    whole = await complete(ada.http, **fields)
    *pieces, last = await stream(ada.http, stream_options={"include_usage": True}, **fields)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert len({piece["id"] for piece in (*pieces, last)}) == 1
    for choice in whole["choices"]:
        parts = [part for piece in pieces for part in piece["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"]:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [one for part in parts for one in part["logprobs"][name]] == choice["logprobs"][name]


async def test_a_refused_stream_is_a_plain_refusal(ada: Someone) -> None:
    for fields, status in (({"model": "doc_none"}, 404), ({"max_tokens": 500}, 422)):
        body = {"model": "base", "prompt": "a", "stream": True} | fields
        error_of(await ada.http.post("/v1/completions", json=body), status)


async def test_echo_alone_needs_no_engine(ada: Someone, engine: ScriptedEngine) -> None:
    body = await complete(ada.http, max_tokens=0, echo=True)
    assert body["choices"][0]["text"] == "one two"
    assert engine.requests == []


async def test_own_km_by_either_name(ada: Someone, registry: Registry, engine: ScriptedEngine) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    texts = {(await complete(ada.http, model=name))["choices"][0]["text"] for name in (document_id, km.id)}
    assert [request.adapter for request in engine.requests] == [adapter_of(km)] * 2
    assert len(texts) == 1
    assert (await ada.http.get(f"/v1/models/{km.id}")).json()["document_id"] == document_id
    error_of(await ada.http.get("/v1/models/km_other"), 404)
    models = (await ada.http.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["base", km.id, document_id]
    assert models["data"][1]["document_id"] == document_id


async def test_models_are_the_callers(ada: Someone, bob: Someone, registry: Registry) -> None:
    train(registry, await ada.upload(), ada.principal)
    await bob.upload()
    assert [model["id"] for model in (await bob.http.get("/v1/models")).json()["data"]] == ["base"]


async def test_document_without_km(ada: Someone) -> None:
    response = await ada.http.post("/v1/completions", json={"model": await ada.upload(), "prompt": "a"})
    assert error_of(response, 409)["code"] == "km_not_trained"


async def test_trainer_runs_behind_users(
    ada: Someone, trainer: AsyncClient, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    await complete(trainer, prompt=["a", "b"])
    assert {request.priority for request in engine.requests} == {PRIORITY_SYNTHESIS}
    assert {request.cache_salt for request in engine.requests}.isdisjoint({ada.principal.user_id, None})
    km = train(registry, document_id, ada.principal)
    for model in (document_id, km.id, "doc_unknown"):
        response = await trainer.post("/v1/completions", json={"model": model, "prompt": "a"})
        assert error_of(response, 403)["param"] == "model"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "1 to 256"),
        ({"prompt": ["a"] * 257}, "257 prompts"),
        ({"prompt": ["a", [1]]}, "list of token ids"),
        ({"prompt": [1, "a"]}, "list of token ids"),
        ({"prompt": [[]]}, "list of token ids"),
        ({"prompt": [-1]}, "list of token ids"),
        ({"prompt": [True]}, "list of token ids"),
        ({"prompt": [50_000]}, "vocabulary"),
        ({"prompt": None}, "prompt: send"),
        ({"prompt": {}}, "prompt: send"),
        ({"stop": 3}, "stop:"),
        ({"max_tokens": -1}, "max_tokens:"),
        ({"max_tokens": 0}, "echo"),
        ({"max_tokens": 199}, "at most 1 fit"),
        ({"prompt": ["a", "b " * 190]}, "191 tokens"),
        ({"prompt": "b " * 200, "max_tokens": 0, "echo": True, "logprobs": 0}, "201 tokens"),
        ({"temperature": 3}, "temperature:"),
        ({"top_p": 0}, "top_p:"),
        ({"n": 17}, "n:"),
        ({"n": 0}, "n:"),
        ({"logprobs": 21}, "logprobs:"),
        ({"stream": "perhaps"}, "stream:"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias:"),
        ({"frequency_penalty": 3}, "frequency_penalty:"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"seed": -1}, "seed:"),
    ],
)
async def test_refusals(ada: Someone, engine: ScriptedEngine, fields: dict[str, Any], says: str) -> None:
    body = {"model": "base", "prompt": "one two"} | fields
    error = error_of(await ada.http.post("/v1/completions", json=body), 422)
    assert says in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []


async def test_one_failure_ends_the_others(ada: Someone, engine: ScriptedEngine, registry: Registry) -> None:
    engine.hold()
    asking = asyncio.create_task(
        ada.http.post("/v1/completions", json={"model": "base", "prompt": ["a", "b", "c"]})
    )
    await asyncio.wait_for(engine.until_asked(3), 10)
    engine.fail("The engine died.")
    assert "The engine died." in error_of(await asyncio.wait_for(asking, 10), 503)["message"]
    assert len(engine.in_flight) == 0
