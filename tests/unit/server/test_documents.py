"""Upload, look, follow, train again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from httpx import Response
from redis.exceptions import ConnectionError as RedisConnectionError

from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import Job, Stage
from tests.unit.server.conftest import TEXT, Someone, error_of, train


def events_of(response: Response) -> list[tuple[int, str, Any]]:
    """Server-sent events as (id, name, data)."""
    found = []
    for block in response.text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_upload_json(ada: Someone, registry: Registry, queue: MemoryJobQueue) -> None:
    sent = {"title": "Harbour", "text": TEXT, "recipe": {"steps": 20}}
    response = await ada.http.post("/documents", json=sent)
    assert response.status_code == 202
    body = response.json()
    assert body["created"] is True
    assert body["document"]["title"] == "Harbour"
    assert body["document"]["size_bytes"] == len(TEXT)
    assert body["job"]["state"] == "queued"
    assert registry.read_text(body["document"]["id"]) == TEXT
    assert registry.job_recipe(body["job"]["id"])["steps"] == 20
    assert queue.waiting() == [body["job"]["id"]]


@pytest.mark.parametrize(
    ("name", "content", "title", "expected_title", "expected_text"),
    [
        ("notes.md", "# Größe\n".encode(), None, "notes", "# Größe\n"),
        ("C:\\texts\\Notes.TXT", b"\xef\xbb\xbfabc", None, "Notes", "abc"),
        ("a.txt", b"abc", "Mine", "Mine", "abc"),
        ("a.txt", b"abc", "  ", "a", "abc"),
        ("a.txt", b"x" * 5000, None, "a", "x" * 5000),
    ],
)
async def test_upload_file(
    ada: Someone,
    registry: Registry,
    name: str,
    content: bytes,
    title: str | None,
    expected_title: str,
    expected_text: str,
) -> None:
    data = {} if title is None else {"title": title}
    response = await ada.http.post("/documents", files={"file": (name, content)}, data=data)
    assert response.status_code == 202, response.text
    document = response.json()["document"]
    assert document["title"] == expected_title
    assert registry.read_text(document["id"]) == expected_text


async def test_json_may_escape_every_character(ada: Someone) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in "é" * 2500)
    response = await ada.http.post(
        "/documents",
        content=f'{{"title": "t", "text": "{escaped}"}}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 202
    assert response.json()["document"]["size_bytes"] == 5000


async def test_same_text_again(ada: Someone, bob: Someone, queue: MemoryJobQueue) -> None:
    first = (await ada.http.post("/documents", json={"title": "a", "text": TEXT})).json()
    again = await ada.http.post("/documents", files={"file": ("b.txt", TEXT.encode())})
    assert again.status_code == 200
    assert again.json() == first | {"created": False}
    assert len(queue.waiting()) == 1
    assert await bob.upload() != first["document"]["id"]


async def test_upload_while_the_queue_is_away(
    ada: Someone, queue: MemoryJobQueue, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(job: Job) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(queue, "enqueue", away)
    document_id = await ada.upload()
    assert [job.document_id for job in registry.unfinished_jobs()] == [document_id]


async def test_listing_in_pages(ada: Someone, bob: Someone) -> None:
    ids = [await ada.upload(f"text {number}") for number in range(3)]
    await bob.upload()
    first = (await ada.http.get("/documents?limit=2")).json()
    assert [document["id"] for document in first["documents"]] == [ids[2], ids[1]]
    rest = (await ada.http.get(f"/documents?limit=2&before={first['next_before']}")).json()
    assert [document["id"] for document in rest["documents"]] == [ids[0]]
    assert rest["next_before"] is None
    assert (await ada.http.get("/documents?limit=3")).json()["next_before"] is None


async def test_listing_by_title(ada: Someone) -> None:
    ids = [await ada.upload(f"Text of {title}.", title=title) for title in ("Harbour", "Wool", "HARvest")]
    found = (await ada.http.get("/documents", params={"q": "har"})).json()["documents"]
    assert [(one["id"], one["owner_id"]) for one in found] == [
        (ids[place], ada.principal.user_id) for place in (2, 0)
    ]


async def test_detail_follows_the_training(ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    job = registry.claim(registry.job_of(document_id).id)
    assert job is not None
    registry.progress(job.id, job.attempt, Stage.TRAINING, 120, 200, loss=0.5)
    body = (await ada.http.get(f"/documents/{document_id}")).json()
    assert body["job"]["progress"] == "training 120/200"
    assert body["km"] is None
    registry.release(job.id, job.attempt)
    km = train(registry, document_id, ada.principal)
    body = (await ada.http.get(f"/documents/{document_id}")).json()
    assert body["job"]["state"] == "succeeded"
    assert body["km"]["id"] == km.id
    assert body["km"]["metrics"] == {"recovered": 0.8}
    assert "path" not in body["km"]


async def test_events_are_replayed_and_end(ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    job = registry.claim(registry.job_of(document_id).id)
    assert job is not None
    registry.progress(job.id, job.attempt, Stage.TRAINING, 1, 2, loss=0.5)
    registry.fail(job.id, job.attempt, "out of memory")
    response = await ada.http.get(f"/documents/{document_id}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    assert [name for _, name, _ in events] == ["queued", "progress", "failed"]
    assert events[1][2] | {"stage": "training", "step": 1, "loss": 0.5} == events[1][2]
    rest = await ada.http.get(
        f"/documents/{document_id}/events", headers={"Last-Event-ID": str(events[1][0])}
    )
    assert events_of(rest) == events[2:]


async def test_events_come_live(ada: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    following = asyncio.create_task(ada.http.get(f"/documents/{document_id}/events"))
    await asyncio.to_thread(train, registry, document_id, ada.principal)
    events = events_of(await asyncio.wait_for(following, 10))
    assert [events[0][1], events[-1][1]] == ["queued", "published"]


async def test_train_again(ada: Someone, registry: Registry, queue: MemoryJobQueue) -> None:
    document_id = await ada.upload()
    error_of(await ada.http.post(f"/documents/{document_id}/train"), 409)
    first = registry.claim(queue.take() or "")
    assert first is not None
    registry.fail(first.id, first.attempt, "out of memory")
    response = await ada.http.post(f"/documents/{document_id}/train")
    assert response.status_code == 202
    assert response.json()["job"]["id"] != first.id
    assert queue.waiting() == [response.json()["job"]["id"]]
    train(registry, document_id, ada.principal)
    error_of(await ada.http.post(f"/documents/{document_id}/train"), 409)


async def test_cancelled(ada: Someone, registry: Registry, queue: MemoryJobQueue) -> None:
    document_id = await ada.upload()
    response = await ada.http.post(f"/documents/{document_id}/cancel")
    assert response.status_code == 200, response.text
    assert response.json()["job"]["state"] == "cancelled"
    assert queue.waiting() == []
    error = error_of(await ada.http.post(f"/documents/{document_id}/cancel"), 409)
    assert "nothing to cancel" in error["message"]


async def test_cancelled_while_the_queue_is_away(
    ada: Someone, registry: Registry, queue: MemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    document_id = await ada.upload()

    def fail(job_id: str) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(queue, "stop", fail)
    assert (await ada.http.post(f"/documents/{document_id}/cancel")).status_code == 200


async def test_a_waiting_training_may_be_put_first(ada: Someone, bob: Someone, registry: Registry) -> None:
    first, second = await ada.upload("one"), await ada.upload("two")
    response = await ada.http.put(f"/documents/{second}/priority", json={"priority": "high"})
    assert response.status_code == 200
    assert [job.document_id for job in registry.queued_jobs(2)] == [second, first]
    error_of(await bob.http.put(f"/documents/{second}/priority", json={"priority": "high"}), 404)
    error_of(await ada.http.put(f"/documents/{second}/priority", json={"priority": "urgent"}), 422)
    train(registry, second, ada.principal)
    error_of(await ada.http.put(f"/documents/{second}/priority", json={"priority": "low"}), 409)
