"""Following a document's job, over a real Redis and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.retry import Retry

from km_registry import events
from km_registry.config import RegistrySettings
from km_registry.events import MemoryNotifier, Notifier, NullNotifier, RedisNotifier, channel, follow
from km_registry.registry import Registry
from km_registry.types import Document, Event, Job, Principal, Stage

Bus = AsyncRedis | MemoryNotifier


@pytest.fixture(params=["memory", "redis"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield request.getfixturevalue("notifier")
        return
    request.getfixturevalue("redis_server")
    socket: Path = request.getfixturevalue("redis_socket")
    async with AsyncRedis(unix_socket_path=str(socket)) as client:
        yield client


@pytest.fixture
def told(bus: Bus, settings: RegistrySettings, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry that announces its events on `bus`."""
    announcer: Notifier
    announcer = (
        bus if isinstance(bus, MemoryNotifier) else RedisNotifier(request.getfixturevalue("redis_server"))
    )
    with Registry.open(settings, announcer) as opened:
        yield opened


@pytest.fixture
def uploaded(told: Registry) -> tuple[Principal, Document, Job]:
    principal = Principal(told.create_user("Ada")[0].id)
    document, job, _ = told.add_document(principal, "Kaldvik", "text")
    return principal, document, job


class Following:
    """A follower in a task of its own, whose events can be awaited one by one."""

    def __init__(self, registry: Registry, bus: Bus, document_id: str) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.task = asyncio.create_task(self._run(registry, bus, document_id))

    async def _run(self, registry: Registry, bus: Bus, document_id: str) -> None:
        async for event in follow(registry, bus, document_id):
            self.events.put_nowait(event)

    async def kind(self) -> str:
        return (await asyncio.wait_for(self.events.get(), 10)).kind


async def test_events_come_as_they_happen_until_the_job_ends(
    told: Registry, bus: Bus, uploaded: tuple[Principal, Document, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Notices alone must do it.
    monkeypatch.setattr(events, "_REREAD_SECONDS", 600.0)
    _, document, job = uploaded
    follower = Following(told, bus, document.id)
    assert await follower.kind() == "queued"
    running = await asyncio.to_thread(told.claim, job.id)
    assert running is not None
    for step in range(3):
        await asyncio.to_thread(told.progress, job.id, 1, Stage.TRAINING, step, 3)
        assert await follower.kind() == "progress"
    await asyncio.to_thread(told.fail, job.id, 1, "no")
    assert await follower.kind() == "failed"
    await asyncio.wait_for(follower.task, 10)


async def test_a_retried_job_is_followed_past_the_first_failure(
    told: Registry, bus: Bus, uploaded: tuple[Principal, Document, Job]
) -> None:
    principal, document, job = uploaded
    told.claim(job.id)
    told.fail(job.id, 1, "no")
    told.retrain(principal, document.id)
    follower = Following(told, bus, document.id)
    assert [await follower.kind() for _ in range(3)] == ["queued", "failed", "queued"]
    told.tombstone(principal, document.id)
    assert await follower.kind() == "cancelled"
    await asyncio.wait_for(follower.task, 10)


async def test_following_a_purged_document_ends(
    told: Registry, bus: Bus, uploaded: tuple[Principal, Document, Job]
) -> None:
    principal, document, _ = uploaded
    told.tombstone(principal, document.id)
    told.purge(document.id)
    assert [event async for event in follow(told, bus, document.id)] == []


@pytest.mark.parametrize("bus", ["redis"], indirect=True)
async def test_an_event_whose_notice_was_lost_is_found(
    told: Registry,
    bus: Bus,
    uploaded: tuple[Principal, Document, Job],
    settings: RegistrySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "_REREAD_SECONDS", 0.05)
    _, document, job = uploaded
    follower = Following(told, bus, document.id)
    assert await follower.kind() == "queued"
    with Registry.open(settings, NullNotifier()) as mute:
        mute.claim(job.id)
        mute.fail(job.id, 1, "no")
    assert await follower.kind() == "failed"
    await asyncio.wait_for(follower.task, 10)


async def test_other_documents_are_not_heard(
    told: Registry, bus: Bus, uploaded: tuple[Principal, Document, Job]
) -> None:
    principal, document, job = uploaded
    _, other_job, _ = told.add_document(principal, "other", "other text")
    follower = Following(told, bus, document.id)
    told.claim(other_job.id)
    told.fail(other_job.id, 1, "no")
    told.claim(job.id)
    told.fail(job.id, 1, "no")
    await asyncio.wait_for(follower.task, 10)
    heard = [follower.events.get_nowait() for _ in range(follower.events.qsize())]
    assert {event.document_id for event in heard} == {document.id}


async def test_a_follower_that_leaves_is_forgotten(
    told: Registry, bus: Bus, uploaded: tuple[Principal, Document, Job]
) -> None:
    document = uploaded[1]
    following = follow(told, bus, document.id)
    await anext(following)
    await following.aclose()
    if isinstance(bus, MemoryNotifier):
        assert bus.listeners(document.id) == 0
    else:
        assert await bus.pubsub_numsub(channel(document.id)) == [(channel(document.id).encode(), 0)]


def test_a_notice_holds_the_id_only(redis_server: Redis) -> None:
    with redis_server.pubsub() as pubsub:
        pubsub.subscribe("km:events:doc_1")
        assert pubsub.get_message(timeout=10)["type"] == "subscribe"
        RedisNotifier(redis_server).notify("doc_1", 7)
        assert pubsub.get_message(timeout=10)["data"] == b"7"


def test_an_unreachable_redis_does_not_undo_what_happened(tmp_path: Path, settings: RegistrySettings) -> None:
    with (
        Redis(unix_socket_path=str(tmp_path / "nobody"), retry=Retry(NoBackoff(), 0)) as nobody,
        Registry.open(settings, RedisNotifier(nobody)) as registry,
    ):
        principal = Principal(registry.create_user("Ada")[0].id)
        document, _, created = registry.add_document(principal, "Kaldvik", "text")
        assert created
        assert [event.kind for event in registry.events_after(document.id)] == ["queued"]
