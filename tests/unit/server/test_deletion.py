"""Deletion: closed at once, answers in flight finished, evicted before purged, resumed after a restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import KM, JobState
from server.app import AppState
from server.engine.base import Adapter, Eviction
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import TEXT, Someone, error_of, train


def is_there(km: KM) -> bool:
    """Whether the KM's files are on disk."""
    return Path(km.path).exists()


def left_of(directory: Path, *words: str) -> list[str]:
    """Files in which one of the words stands."""
    return [
        str(path)
        for path in directory.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words)
    ]


async def test_everything_is_gone(
    ada: Someone, bob: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload(title="Zanzibar")
    km = train(registry, document_id, ada.principal)
    assert (await ada.ask(document_id)).status_code == 200
    response = await ada.http.delete(f"/documents/{document_id}")
    assert response.status_code == 200
    assert [adapter.name for adapter in engine.evicted] == [km.id]
    assert engine.resident == {}
    for mode in ("km", "icl", "base"):
        error_of(await ada.ask(document_id, mode), 404)
    error_of(await ada.http.get(f"/documents/{document_id}"), 404)
    error_of(await ada.http.delete(f"/documents/{document_id}"), 404)
    for model in (document_id, km.id):
        error_of(await ada.http.post("/v1/completions", json={"model": model, "prompt": "a"}), 404)
    assert not is_there(km)
    assert left_of(state.settings.data_dir, "Ostrell", "Maren", "Zanzibar") == []
    receipt = await ada.http.get(f"/receipts/{document_id}")
    assert receipt.json() == response.json()
    assert receipt.json()["document_id"] == document_id
    purged = receipt.json()["purged"]
    assert (purged["engine_adapters"], purged["engine_slots"], purged["engine_prefixes_forgotten"]) == (
        1,
        1,
        True,
    )
    error_of(await bob.http.get(f"/receipts/{document_id}"), 404)


async def test_the_receipt_names_the_replicas_that_acknowledged(
    ada: Someone, registry: Registry, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    alone = engine.evict

    async def on_two(adapter: Adapter) -> Eviction:
        return replace(await alone(adapter), replicas=("a1", "b2"))

    monkeypatch.setattr(engine, "evict", on_two)
    purged = (await ada.http.delete(f"/documents/{document_id}")).json()["purged"]
    # It was never asked, so none held it; both said so.
    assert (purged["engine_adapters"], purged["engine_replicas"]) == (0, ["a1", "b2"])


async def test_training_is_stopped(ada: Someone, registry: Registry, queue: MemoryJobQueue) -> None:
    document_id = await ada.upload()
    job = registry.claim(queue.take() or "")
    assert job is not None
    assert (await ada.http.delete(f"/documents/{document_id}")).status_code == 200
    assert queue.stopped == [job.id]
    assert registry.cancelled(job.id, job.attempt)


async def test_answers_in_flight_are_finished_first(
    ada: Someone, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    engine.hold()
    asking = [asyncio.create_task(ada.ask(document_id, mode)) for mode in ("km", "icl")]
    asking.append(asyncio.create_task(ada.http.post("/v1/completions", json={"model": km.id, "prompt": "a"})))
    await asyncio.wait_for(engine.until_asked(3), 10)
    deleting = asyncio.create_task(ada.http.delete(f"/documents/{document_id}"))
    while (await ada.http.get(f"/documents/{document_id}")).status_code != 404:
        pass
    error_of(await ada.ask(document_id), 404)
    assert not deleting.done()
    assert is_there(km)
    assert engine.evicted == []
    engine.release()
    assert [(await task).status_code for task in asking] == [200] * 3
    assert (await asyncio.wait_for(deleting, 10)).status_code == 200
    assert not is_there(km)


@pytest.mark.parametrize("what", ["", "/km"])
async def test_who_waits_for_a_slot_is_told_at_once(
    ada: Someone, registry: Registry, engine: ScriptedEngine, what: str
) -> None:
    documents = [await ada.upload(f"document {number}") for number in range(5)]
    for document_id in documents:
        train(registry, document_id, ada.principal)
    engine.hold()
    asking = [asyncio.create_task(ada.ask(document_id)) for document_id in documents[:4]]
    await asyncio.wait_for(engine.until_asked(4), 10)
    # There are four slots.
    waiting = [asyncio.create_task(ada.ask(documents[4], stream=stream)) for stream in (False, True)]
    await asyncio.wait_for(engine.until_asked(6), 10)
    response = await asyncio.wait_for(ada.http.delete(f"/documents/{documents[4]}{what}"), 10)
    assert response.status_code == 200
    for task in waiting:
        error_of(await asyncio.wait_for(task, 10), 404)
    engine.release()
    assert [(await task).status_code for task in asking] == [200] * 4


async def test_documents_do_not_wait_for_each_other(ada: Someone, engine: ScriptedEngine) -> None:
    asked, deleted = await ada.upload("one"), await ada.upload("two")
    engine.hold()
    asking = asyncio.create_task(ada.ask(asked, "icl"))
    await asyncio.wait_for(engine.until_asked(1), 10)
    response = await asyncio.wait_for(ada.http.delete(f"/documents/{deleted}"), 10)
    assert response.status_code == 200
    engine.release()
    assert (await asking).status_code == 200


async def test_the_deletion_goes_on_without_its_client(
    ada: Someone, state: AppState, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    engine.hold()
    asking = asyncio.create_task(ada.ask(document_id))
    await asyncio.wait_for(engine.until_asked(1), 10)
    deleting = asyncio.create_task(state.deletions.forget(ada.principal, document_id))
    while (await ada.http.get(f"/documents/{document_id}")).status_code != 404:
        pass
    resuming = asyncio.create_task(state.deletions.resume())
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    engine.release()
    await asking
    await asyncio.wait_for(resuming, 10)
    await asyncio.wait_for(state.deletions.settled(), 10)
    assert registry.receipt(ada.principal, document_id).document_id == document_id
    assert registry.pending_deletions() == []


async def test_interrupted_deletion_is_resumed(
    ada: Someone, state: AppState, queue: MemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    document_id = await ada.upload()

    def away(job_id: str) -> None:
        raise RedisConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(queue, "stop", away)
        error = error_of(await ada.http.delete(f"/documents/{document_id}"), 503)
        assert error["code"] == "deletion_pending"
        assert await state.deletions.resume() == 0
    error_of(await ada.http.get(f"/documents/{document_id}"), 404)
    error_of(await ada.http.get(f"/receipts/{document_id}"), 404)
    assert left_of(state.settings.data_dir / "documents", "Ostrell") != []
    assert await state.deletions.resume() == 1
    assert left_of(state.settings.data_dir, "Ostrell") == []
    assert (await ada.http.get(f"/receipts/{document_id}")).status_code == 200
    assert await state.deletions.resume() == 0


async def test_resumed_after_the_purge(ada: Someone, state: AppState, registry: Registry) -> None:
    document_id = await ada.upload()
    registry.tombstone(ada.principal, document_id)
    registry.purge(document_id)
    assert await state.deletions.resume() == 1
    assert registry.receipt(ada.principal, document_id).document_id == document_id


async def test_same_text_may_come_again(ada: Someone, registry: Registry) -> None:
    first = await ada.upload()
    await ada.http.delete(f"/documents/{first}")
    second = await ada.upload()
    assert second != first
    assert registry.job_of(second).state is JobState.QUEUED
    assert registry.read_text(second) == TEXT


async def test_nothing_of_the_text_is_in_the_logs(ada: Someone, capture: list[dict[str, Any]]) -> None:
    document_id = await ada.upload(title="Zanzibar")
    await ada.ask(document_id, "icl")
    await ada.http.delete(f"/documents/{document_id}")
    assert {"method": "POST", "route": "/answer", "status": 200}.items() <= {
        key: value for entry in capture for key, value in entry.items() if entry.get("route") == "/answer"
    }.items()
    for word in ("Ostrell", "Zanzibar", "When does", ada.key):
        assert word not in repr(capture)


@pytest.fixture
def capture() -> Any:
    from structlog.testing import capture_logs

    with capture_logs() as entries:
        yield entries
