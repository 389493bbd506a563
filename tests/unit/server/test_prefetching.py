"""Adapters are loaded ahead of the first question, never against a deletion."""

from __future__ import annotations

import asyncio

from km_registry.registry import Registry
from server.app import AppState
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import Someone, train


async def test_a_document_that_is_opened(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    await ada.http.get(f"/documents/{document_id}")
    await state.prefetching.settled()
    assert engine.resident == {}
    km = train(registry, document_id, ada.principal)
    for _ in range(2):
        await ada.http.get(f"/documents/{document_id}")
        await state.prefetching.settled()
    assert (await ada.ask(document_id)).status_code == 200
    assert set(engine.resident) == {km.id}
    counts = (await engine.status()).adapters
    assert (counts.loads, counts.found_on_disk) == (1, 0)


async def test_kms_that_are_published(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    documents = [await ada.upload(text) for text in ("one", "two")]
    train(registry, documents[0], ada.principal)
    # What was there before is not loaded at every start.
    assert await state.prefetching.published() == 0
    km = train(registry, documents[1], ada.principal)
    assert await state.prefetching.published() == 1
    assert await state.prefetching.published() == 0
    await ada.ask(documents[1])
    assert set(engine.resident) == {km.id}


async def test_nothing_is_loaded_of_what_is_deleted(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    assert (await ada.http.delete(f"/documents/{document_id}")).status_code == 200
    state.prefetching.opened(document_id)
    await state.prefetching.settled()
    assert engine.resident == {}


async def test_nor_of_what_is_closed_and_not_purged_yet(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    """Another gateway may still have to let go of it."""
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    registry.tombstone(ada.principal, document_id)
    state.prefetching.opened(document_id)
    await state.prefetching.settled()
    assert engine.resident == {}


async def test_an_engine_that_is_away_is_no_error(
    ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    engine.running = False
    opening = [ada.http.get(f"/documents/{document_id}") for _ in range(3)]
    assert [one.status_code for one in await asyncio.gather(*opening)] == [200] * 3
    await state.prefetching.settled()
    assert engine.resident == {}
