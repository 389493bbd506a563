"""Event streams end: at the last event, with the document, with the server, and with Redis."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sse_starlette import ServerSentEvent

from km_registry.registry import Registry
from server.app import AppState
from server.event_stream import event_stream
from tests.unit.server.conftest import Someone, train


async def _rest(stream: object) -> list[str | None]:
    assert hasattr(stream, "__aiter__")
    found: list[ServerSentEvent] = [event async for event in stream]
    return [event.event for event in found]


async def test_live_until_published(ada: Someone, state: AppState, registry: Registry) -> None:
    document_id = await ada.upload()
    stream = event_stream(state, ada.principal, document_id, 0)
    assert (await anext(stream)).event == "queued"
    rest = asyncio.create_task(_rest(stream))
    await asyncio.to_thread(train, registry, document_id, ada.principal)
    assert (await asyncio.wait_for(rest, 10))[-1] == "published"


async def test_ends_with_the_document(ada: Someone, state: AppState) -> None:
    document_id = await ada.upload()
    stream = event_stream(state, ada.principal, document_id, 0)
    await anext(stream)
    rest = asyncio.create_task(_rest(stream))
    assert (await ada.http.delete(f"/documents/{document_id}")).status_code == 200
    assert set(await asyncio.wait_for(rest, 10)) <= {"cancelled"}


async def test_ends_with_the_server(ada: Someone, state: AppState) -> None:
    document_id = await ada.upload()
    stream = event_stream(state, ada.principal, document_id, 0)
    await anext(stream)
    rest = asyncio.create_task(_rest(stream))
    state.closing.set()
    assert await asyncio.wait_for(rest, 10) == []


async def test_cancelling_gives_up_the_subscription(ada: Someone, state: AppState) -> None:
    document_id = await ada.upload()
    await state.retriever.settled()
    before = asyncio.all_tasks()
    stream = event_stream(state, ada.principal, document_id, 0)
    await anext(stream)
    waiting = asyncio.create_task(_rest(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    left = asyncio.all_tasks() - before
    assert [task for task in left if "_shutdown_watcher" not in repr(task.get_coro())] == []


async def test_ends_without_redis(ada: Someone, state: AppState, tmp_path: Path) -> None:
    document_id = await ada.upload()
    state.redis = Redis(unix_socket_path=str(tmp_path / "none"), retry=Retry(NoBackoff(), 0))
    assert await _rest(event_stream(state, ada.principal, document_id, 0)) == []
    await state.redis.aclose()


async def _revoke_grant(ada: Someone, bob: Someone, document_id: str) -> None:
    await ada.http.delete(f"/documents/{document_id}/grants/{bob.principal.user_id}")


async def _revoke_key(ada: Someone, bob: Someone, document_id: str) -> None:
    (key,) = (await bob.http.get("/keys")).json()["keys"]
    assert (await bob.http.delete(f"/keys/{key['id']}")).status_code == 200


@pytest.mark.parametrize("revoke", [_revoke_grant, _revoke_key])
async def test_ends_with_what_it_rests_on(
    ada: Someone, bob: Someone, state: AppState, registry: Registry, revoke: Any
) -> None:
    document_id = await ada.upload()
    await ada.http.post(f"/documents/{document_id}/grants", json={"user": "Bob"})
    reader = registry.authenticate(bob.key)
    assert reader is not None
    theirs = event_stream(state, reader, document_id, 0)
    owners = event_stream(state, ada.principal, document_id, 0)
    for stream in (theirs, owners):
        assert (await anext(stream)).event == "queued"
    rest = asyncio.create_task(_rest(theirs))
    began = time.monotonic()
    await revoke(ada, bob, document_id)
    assert await asyncio.wait_for(rest, 10) == []
    # The promise is 2 s; the rest is for a machine that is busy with other tests.
    assert time.monotonic() - began < 5
    going_on = asyncio.create_task(_rest(owners))
    await asyncio.to_thread(train, registry, document_id, ada.principal)
    assert (await asyncio.wait_for(going_on, 10))[-1] == "published"
