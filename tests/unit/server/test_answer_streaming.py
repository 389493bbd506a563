"""POST /answer with `stream`."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from httpx import Response

from km_registry.registry import Registry
from server.app import AppState
from server.client import read_events
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import Someone, error_of, train

VARYING = {"milliseconds"}


def events_of(response: Response) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of all events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return [(event.kind, event.data) for event in read_events(response.text.splitlines())]


@pytest.mark.parametrize("mode", ["km", "rag", "km+rag", "icl", "base", "auto"])
async def test_a_stream_ends_with_the_plain_answer(ada: Someone, registry: Registry, mode: str) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    plain = (await ada.ask(document_id, mode)).json()
    *deltas, (kind, last) = events_of(await ada.ask(document_id, mode, stream=True))
    assert kind == "answer"
    assert {name for name, _ in deltas} == {"delta"}
    assert len(deltas) > 1
    assert "".join(delta["text"] for _, delta in deltas).strip() == last["answer"]
    assert last.keys() == plain.keys()
    assert {name for name in plain if plain[name] != last[name]} <= VARYING


async def test_refusals_before_the_first_piece_have_their_status(ada: Someone, bob: Someone) -> None:
    document_id = await ada.upload()
    error_of(await bob.ask(document_id, "icl", stream=True), 404)
    assert error_of(await ada.ask(document_id, "km", stream=True), 409)["code"] == "km_not_trained"
    error_of(await ada.ask(document_id, "icl", stream=True, max_tokens=199), 422)


async def test_a_failure_later_is_an_event(ada: Someone, engine: ScriptedEngine) -> None:
    document_id = await ada.upload()
    engine.hold(after_tokens=1)
    asking = asyncio.create_task(ada.ask(document_id, "icl", stream=True))
    await asyncio.wait_for(engine.until_streamed(1), 10)
    engine.fail("The engine died.")
    (first, _), (second, data) = events_of(await asyncio.wait_for(asking, 10))
    assert (first, second) == ("delta", "error")
    assert data["error"]["message"] == "The engine died."


async def test_a_server_that_stops_says_so(ada: Someone, engine: ScriptedEngine, state: AppState) -> None:
    document_id = await ada.upload()
    engine.hold(after_tokens=1)
    asking = asyncio.create_task(ada.ask(document_id, "icl", stream=True))
    await asyncio.wait_for(engine.until_streamed(1), 10)
    state.closing.set()
    (first, _), (second, data) = events_of(await asyncio.wait_for(asking, 10))
    assert (first, second, data["error"]["code"]) == ("delta", "error", "stopping")
    assert engine.in_flight == []


async def test_hanging_up_ends_the_generation_and_frees_the_document(
    ada: Someone, url: str, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    question = {"document_id": document_id, "question": "When?", "mode": "icl", "stream": True}
    engine.hold(after_tokens=1)
    headers = {"Authorization": f"Bearer {ada.key}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers) as client,
        client.stream("POST", "/answer", json=question) as response,
    ):
        await anext(response.aiter_lines())
        assert len(state.in_flight) == 1
    await asyncio.wait_for(engine.until_idle(), 10)
    assert len(engine.cancelled) == 1
    deleted = await asyncio.wait_for(ada.http.delete(f"/documents/{document_id}"), 10)
    assert deleted.status_code == 200


async def test_times_are_counted(ada: Someone, admin: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    await ada.ask(document_id, "km", stream=True)
    await ada.ask(document_id, "km")
    lines = (await admin.http.get("/metrics")).text.splitlines()
    assert 'km_first_token_milliseconds_count{mode="km"} 2.0' in lines
    assert 'km_answer_milliseconds_count{mode="km"} 2.0' in lines
    assert 'km_tokens_total{kind="completion",mode="km"} 8.0' in lines


@pytest.mark.parametrize("by", ["grant", "key"])
async def test_a_stream_is_cut_when_what_it_rests_on_is_taken(
    ada: Someone, bob: Someone, engine: ScriptedEngine, by: str
) -> None:
    document_id = await ada.upload()
    await ada.http.post(f"/documents/{document_id}/grants", json={"user": "Bob"})
    (key,) = (await bob.http.get("/keys")).json()["keys"]
    engine.hold(after_tokens=1)
    theirs = asyncio.create_task(bob.ask(document_id, "icl", stream=True))
    await asyncio.wait_for(engine.until_streamed(1), 10)
    whole = asyncio.create_task(bob.ask(document_id, "icl"))
    owners = asyncio.create_task(ada.ask(document_id, "icl"))
    await asyncio.wait_for(engine.until_asked(3), 10)
    granted = f"/documents/{document_id}/grants/{bob.principal.user_id}"
    revoking = ada.http.delete(granted) if by == "grant" else bob.http.delete(f"/keys/{key['id']}")
    assert (await revoking).is_success
    *_, (kind, data) = events_of(await asyncio.wait_for(theirs, 10))
    assert (kind, data["error"]["code"]) == ("error", "not_found")
    assert (await asyncio.wait_for(whole, 10)).status_code == 404
    engine.release()
    assert (await asyncio.wait_for(owners, 10)).status_code == 200


async def test_a_completion_is_cut_when_its_key_is_revoked(ada: Someone, engine: ScriptedEngine) -> None:
    (key,) = (await ada.http.get("/keys")).json()["keys"]
    engine.hold(after_tokens=1)
    asked = {"model": "base", "prompt": "It opens at six", "stream": True}
    completing = asyncio.create_task(ada.http.post("/v1/completions", json=asked))
    await asyncio.wait_for(engine.until_streamed(1), 10)
    assert (await ada.http.delete(f"/keys/{key['id']}")).is_success
    assert "not_found" in (await asyncio.wait_for(completing, 10)).text
