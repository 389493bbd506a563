"""New versions over HTTP: who answers meanwhile, what is evicted and purged afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import KM, JobState
from server.app import AppState
from server.engine.base import EngineUnavailableError
from server.engine.scripted import ScriptedEngine
from server.keepers import keep_replaced
from tests.unit.server.conftest import TEXT, Someone, WordTokenizer, error_of, train
from tests.unit.server.test_deletion import is_there

NEW_TEXT = "The harbour of Ostrell opens at seven. Its bell is called Osk."


async def change(someone: Someone, document_id: str, text: str = NEW_TEXT, **fields: Any) -> dict[str, Any]:
    """PUT; what came back of a version that is new."""
    response = await someone.http.put(f"/documents/{document_id}", json={"text": text, **fields})
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.fixture
async def replaced(ada: Someone, registry: Registry, state: AppState) -> tuple[str, KM, KM]:
    """A document whose second version's KM is published, and whose first one's is not purged yet."""
    document_id = await ada.upload()
    old = train(registry, document_id, ada.principal)
    assert (await ada.ask(document_id)).status_code == 200
    await change(ada, document_id)
    await state.replacements.settled()
    return document_id, old, train(registry, document_id, ada.principal)


async def test_a_new_version(ada: Someone, registry: Registry, queue: MemoryJobQueue) -> None:
    document_id = await ada.upload()
    first = queue.take()
    body = await change(ada, document_id, title="Port", recipe={"steps": 9})
    assert (body["created"], body["job"]["state"], body["job"]["version"]) == (True, "queued", 2)
    assert (body["document"]["version"], body["document"]["title"]) == (2, "Port")
    assert queue.waiting() == [body["job"]["id"]] != [first]
    detail = (await ada.http.get(f"/documents/{document_id}")).json()
    assert detail["recipe"]["steps"] == 9
    assert [(one["version"], one["title"]) for one in detail["versions"]] == [(2, "Port"), (1, "Harbour")]
    assert registry.read_text(document_id) == NEW_TEXT


async def test_a_file_may_be_a_new_version_and_keeps_the_title(ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload(title="Harbour")
    files = {"file": ("other-name.txt", NEW_TEXT.encode())}
    response = await ada.http.put(f"/documents/{document_id}", files=files, data={"recipe": '{"steps": 9}'})
    assert response.status_code == 202
    body = response.json()
    assert (body["document"]["version"], body["document"]["title"]) == (2, "Harbour")
    assert registry.job_recipe(body["job"]["id"])["steps"] == 9


async def test_the_same_text_begins_nothing(ada: Someone, queue: MemoryJobQueue) -> None:
    document_id = await ada.upload()
    queue.take()
    response = await ada.http.put(f"/documents/{document_id}", json={"text": TEXT})
    assert response.status_code == 200
    assert response.json()["created"] is False
    assert response.json()["document"]["version"] == 1
    assert queue.waiting() == []
    assert queue.stopped == []


async def test_the_training_of_the_former_version_is_stopped(
    ada: Someone, registry: Registry, queue: MemoryJobQueue, state: AppState
) -> None:
    document_id = await ada.upload()
    job = registry.claim(queue.take() or "")
    assert job is not None
    (registry.work_dir(job.id) / "synthetic.jsonl").write_text("Ostrell opens at six")
    await change(ada, document_id)
    await state.replacements.settled()
    await state.retriever.settled()
    assert queue.stopped == [job.id]
    assert registry.job(job.id).state is JobState.CANCELLED
    left = [path for path in state.settings.data_dir.rglob("*") if path.is_file()]
    assert [path for path in left if b"opens at six" in path.read_bytes()] == []


async def test_the_former_km_answers_and_icl_knows_the_new_text(
    ada: Someone, registry: Registry, engine: ScriptedEngine, tokenizer: WordTokenizer, state: AppState
) -> None:
    document_id = await ada.upload(title="Harbour")
    old = train(registry, document_id, ada.principal)
    await change(ada, document_id, title="Port")
    await state.replacements.settled()

    told = (await ada.ask(document_id)).json()
    assert (told["km_id"], told["version"]) == (old.id, 1)
    asked = engine.requests[-1]
    assert asked.adapter is not None
    assert asked.adapter.name == old.id

    told = (await ada.ask(document_id, "icl")).json()
    assert (told["km_id"], told["version"]) == (None, 2)
    prompt = tokenizer.decode(engine.requests[-1].prompt_token_ids)
    assert "opens at seven" in prompt
    assert "opens at six" not in prompt
    assert "Port" in prompt


async def test_prefixes_of_versions_are_cached_apart(
    ada: Someone, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    for mode in ("icl", "km"):
        await ada.ask(document_id, mode)
    await ada.http.post("/v1/completions", json={"model": document_id, "prompt": "a"})
    first = {request.cache_salt for request in engine.requests}
    await change(ada, document_id)
    await ada.ask(document_id, "icl")
    assert first == {f"{document_id}:1"}
    assert engine.requests[-1].cache_salt == f"{document_id}:2"


async def test_an_answer_in_flight_keeps_its_text(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    engine.hold()
    asking = asyncio.create_task(ada.ask(document_id, "icl"))
    await asyncio.wait_for(engine.until_asked(1), 10)
    await change(ada, document_id)
    assert registry.read_text(document_id, 1) == TEXT
    engine.release()
    assert (await asking).json()["version"] == 1
    await asyncio.wait_for(state.replacements.settled(), 10)
    assert registry.superseded(document_id) is None


async def test_the_new_km_takes_the_former_ones_place(
    ada: Someone, state: AppState, engine: ScriptedEngine, replaced: tuple[str, KM, KM]
) -> None:
    document_id, old, new = replaced
    told = (await ada.ask(document_id)).json()
    assert (told["km_id"], told["version"]) == (new.id, 2)
    error_of(await ada.http.post("/v1/completions", json={"model": old.id, "prompt": "a"}), 404)
    models = (await ada.http.get("/v1/models")).json()["data"]
    assert {model["id"] for model in models} == {"base", document_id, new.id}

    await state.replacements.resume()
    assert [adapter.name for adapter in engine.evicted] == [old.id]
    assert not is_there(old)
    assert is_there(new)
    assert (await ada.ask(document_id)).json()["km_id"] == new.id
    await state.replacements.resume()
    assert len(engine.evicted) == 1


async def test_answers_of_the_former_km_are_finished_before_it_is_evicted(
    ada: Someone, state: AppState, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    old = train(registry, document_id, ada.principal)
    await change(ada, document_id)
    await state.replacements.settled()
    engine.hold()
    asking = asyncio.create_task(ada.ask(document_id))
    await asyncio.wait_for(engine.until_asked(1), 10)
    train(registry, document_id, ada.principal)
    resuming = asyncio.create_task(state.replacements.resume())
    while not state.in_flight.waited_for:
        await ada.http.get(f"/documents/{document_id}")
    assert engine.evicted == []
    assert is_there(old)
    engine.release()
    assert (await asking).json()["km_id"] == old.id
    await asyncio.wait_for(resuming, 10)
    assert [adapter.name for adapter in engine.evicted] == [old.id]


@pytest.mark.parametrize("broken", ["engine", "queue", "disk"])
async def test_what_could_not_be_done_is_done_later(
    ada: Someone,
    state: AppState,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    replaced: tuple[str, KM, KM],
    broken: str,
) -> None:
    document_id, old, new = replaced
    errors = {"engine": EngineUnavailableError(), "queue": RedisConnectionError(), "disk": OSError(5, "I/O")}

    def fail(*_: Any) -> Any:
        raise errors[broken]

    async def fail_later(*_: Any) -> Any:
        fail()

    await change(ada, document_id, "A third text.")
    await state.replacements.settled()
    with monkeypatch.context() as patch:
        patch.setattr(state.engine, "evict", fail_later if broken == "engine" else state.engine.evict)
        patch.setattr(state.queue, "stop", fail if broken == "queue" else state.queue.stop)
        patch.setattr(registry, "purge_superseded", fail if broken == "disk" else registry.purge_superseded)
        await change(ada, document_id, "A fourth text.")
        train(registry, document_id, ada.principal)
        await state.replacements.settled()
        await state.replacements.resume()
        assert registry.pending_replacements() == [document_id]
        assert (await ada.ask(document_id)).status_code == 200
    await state.replacements.resume()
    assert registry.pending_replacements() == []
    assert not is_there(old)
    assert not is_there(new)
    assert len(registry.all_kms_of(document_id)) == 1


async def test_a_keeper_finds_what_a_worker_published(
    state: AppState, registry: Registry, replaced: tuple[str, KM, KM]
) -> None:
    keeper = asyncio.create_task(keep_replaced(state.replacements, every_s=0.01))
    while await asyncio.to_thread(registry.pending_replacements):
        pass
    keeper.cancel()
    assert not is_there(replaced[1])


async def test_a_deletion_takes_every_version(
    ada: Someone, state: AppState, engine: ScriptedEngine, replaced: tuple[str, KM, KM]
) -> None:
    document_id, old, new = replaced
    assert (await ada.ask(document_id)).status_code == 200
    response = await ada.http.delete(f"/documents/{document_id}")
    assert response.status_code == 200
    assert {adapter.name for adapter in engine.evicted} == {old.id, new.id}
    assert (response.json()["purged"]["kms"], response.json()["purged"]["versions"]) == (2, 2)
    assert list((state.settings.data_dir / "kms").iterdir()) == []
    await state.replacements.resume()
    error_of(await ada.http.put(f"/documents/{document_id}", json={"text": "x"}), 404)


async def test_a_deletion_waits_for_a_replacement_that_is_going_on(
    ada: Someone, state: AppState, engine: ScriptedEngine, replaced: tuple[str, KM, KM]
) -> None:
    document_id, old, new = replaced
    engine.hold()
    asking = asyncio.create_task(ada.ask(document_id))
    await asyncio.wait_for(engine.until_asked(1), 10)
    state.replacements.begin(document_id)
    deleting = asyncio.create_task(ada.http.delete(f"/documents/{document_id}"))
    while (await ada.http.get(f"/documents/{document_id}")).status_code != 404:
        pass
    engine.release()
    assert (await asking).status_code == 200
    assert (await asyncio.wait_for(deleting, 10)).status_code == 200
    assert sorted(adapter.name for adapter in engine.evicted) == sorted([old.id, new.id])
