"""Who trains: for administrators, in metrics, and for who waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import WorkerSeen
from tests.unit.server.conftest import TEXT, Someone, error_of

NOW = datetime.now(UTC)


def seen(name: str, *queues: str, run_id: str | None = None) -> WorkerSeen:
    return WorkerSeen(name, "gpu-3", queues, run_id, NOW, NOW)


async def upload(someone: Someone, queue: str | None) -> str:
    recipe = {} if queue is None else {"queue": queue}
    response = await someone.http.post("/documents", json={"title": "t", "text": TEXT, "recipe": recipe})
    return str(response.json()["document"]["id"])


async def test_a_job_that_nobody_serves_says_what_it_waits_for(ada: Someone, queue: MemoryJobQueue) -> None:
    document_id = await upload(ada, "large-gpu")
    queue.present = [seen("one", "default")]
    job = (await ada.http.get(f"/documents/{document_id}")).json()["job"]
    assert (job["state"], job["queue"]) == ("queued", "large-gpu")
    assert "--queue large-gpu" in job["waits_for"]
    queue.present.append(seen("two", "large-gpu", "default"))
    job = (await ada.http.get(f"/documents/{document_id}")).json()["job"]
    assert job["waits_for"] is None


async def test_any_other_job_waits_for_its_turn_alone(ada: Someone) -> None:
    document_id = await upload(ada, None)
    job = (await ada.http.get(f"/documents/{document_id}")).json()["job"]
    assert (job["queue"], job["waits_for"]) == ("default", None)


async def test_without_redis_nobody_knows(
    ada: Someone, queue: MemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[WorkerSeen]:
        raise RedisConnectionError("away")

    document_id = await upload(ada, "large-gpu")
    monkeypatch.setattr(queue, "workers", away)
    response = await ada.http.get(f"/documents/{document_id}")
    assert response.json()["job"]["waits_for"] is None


async def test_a_queue_has_a_plain_name(ada: Someone) -> None:
    sent = {"title": "t", "text": TEXT, "recipe": {"queue": "large gpu"}}
    error = error_of(await ada.http.post("/documents", json=sent), 422)
    assert "queue" in error["message"]


async def test_administrators_see_who_trains_what(
    admin: Someone, ada: Someone, queue: MemoryJobQueue, registry: Registry
) -> None:
    document_id = await upload(ada, None)
    job = registry.job_of(document_id)
    registry.claim(job.id, run_id="run-1")
    queue.present = [seen("one", "default", run_id="run-1"), seen("two", "large-gpu")]
    workers = (await admin.http.get("/workers")).json()["workers"]
    assert [(one["name"], one["queues"], one["jobs"]) for one in workers] == [
        ("one", ["default"], [job.id]),
        ("two", ["large-gpu"], []),
    ]
    lines = (await admin.http.get("/metrics")).text.splitlines()
    assert 'km_workers{queue="default",state="busy"} 1.0' in lines
    assert 'km_workers{queue="large-gpu",state="idle"} 1.0' in lines
