"""KM and AsyncKM: that they are the same, what they try again, and the main job against the real app."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import stamina

from km_registry.registry import Registry
from server.client import KM, AsyncKM, ClientError, TrainingError
from tests.unit.server.conftest import TEXT, Someone, train

Reply = httpx.Response | Exception
PLENTY = 10


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    with stamina.set_testing(True, attempts=PLENTY, cap=True):
        yield


def scripted(*replies: Reply, retries: int = 3) -> tuple[KM, list[httpx.Request]]:
    """A client whose requests get these replies, the last one for ever, and the requests that it made."""
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        told = replies[min(len(seen), len(replies) - 1)]
        seen.append(request)
        if isinstance(told, Exception):
            raise told
        return httpx.Response(told.status_code, headers=told.headers, content=told.content)

    return KM("http://km", "km_key", retries=retries, transport=httpx.MockTransport(reply)), seen


def refused(status: int, code: str, after: str | None = None) -> httpx.Response:
    headers = {} if after is None else {"Retry-After": after}
    return httpx.Response(status, json={"error": {"message": "No.", "code": code}}, headers=headers)


FINE = httpx.Response(200, json={"document": {"id": "doc_1"}})
AWAY = httpx.ConnectError("refused")
LOST = httpx.ReadError("cut")


@pytest.mark.parametrize(
    ("replies", "do", "requests"),
    [
        ((FINE,), lambda km: km.document("doc_1"), 1),
        ((AWAY, AWAY, FINE), lambda km: km.create_group("crew"), 3),
        ((LOST, FINE), lambda km: km.document("doc_1"), 2),
        # The same text again gives the same document.
        ((LOST, FINE), lambda km: km.add("Harbour", TEXT), 2),
        ((refused(503, "overloaded", "1"), FINE), lambda km: km.ask("doc_1", "When?"), 2),
        ((refused(429, "rate_limited", "1"), FINE), lambda km: km.create_key("laptop"), 2),
    ],
)
def test_what_may_pass_is_tried_again(
    replies: tuple[Reply, ...], do: Callable[[KM], object], requests: int
) -> None:
    km, seen = scripted(*replies)
    do(km)
    assert len(seen) == requests


@pytest.mark.parametrize(
    ("reply", "do"),
    [
        # A second key might be made, or a second receipt be looked for in vain.
        (LOST, lambda km: km.create_key("laptop")),
        (LOST, lambda km: km.delete("doc_1")),
        (refused(503, "deletion_pending", "5"), lambda km: km.delete("doc_1")),
        (refused(429, "rate_limited", "3600"), lambda km: km.me()),
        (refused(503, "engine_unavailable"), lambda km: km.ask("doc_1", "When?")),
        (refused(409, "km_not_trained"), lambda km: km.ask("doc_1", "When?")),
        (refused(404, "not_found"), lambda km: km.document("doc_1")),
    ],
)
def test_what_would_not_pass_is_not(reply: Reply, do: Callable[[KM], object]) -> None:
    km, seen = scripted(reply, FINE)
    with pytest.raises(ClientError):
        do(km)
    assert len(seen) == 1


def test_retries_have_an_end() -> None:
    km, seen = scripted(AWAY, retries=2)
    with pytest.raises(ClientError, match="No answer from http://km") as caught:
        km.me()
    assert (len(seen), caught.value.unreachable) == (3, True)


def test_a_refusal_says_what_the_server_said() -> None:
    body = {"error": {"message": "steps: too many.", "code": "invalid_recipe", "param": "recipe.steps"}}
    km, _ = scripted(httpx.Response(422, json=body))
    with pytest.raises(ClientError, match=r"steps: too many. \(HTTP 422\)") as caught:
        km.add("Harbour", TEXT)
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "invalid_recipe", "recipe.steps")


def test_a_proxys_page_is_a_refusal_too() -> None:
    km, _ = scripted(httpx.Response(502, text="<html>"))
    with pytest.raises(ClientError, match=r"Bad Gateway \(HTTP 502\)"):
        km.me()


def test_events_go_on_where_the_connection_broke() -> None:
    def stream() -> Iterator[bytes]:
        yield b'id: 7\nevent: progress\ndata: {"step": 1}\n\n'
        raise LOST

    broken = httpx.Response(200, stream=_Stream(stream))
    whole = httpx.Response(200, text="id: 8\nevent: published\ndata: {}\n\n")
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return broken if len(seen) == 1 else whole

    km = KM("http://km", "km_key", transport=httpx.MockTransport(reply))
    assert [event.kind for event in km.events("doc_1")] == ["progress", "published"]
    assert [request.headers.get("Last-Event-ID") for request in seen] == [None, "7"]


class _Stream(httpx.SyncByteStream):
    def __init__(self, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks()


@pytest.mark.parametrize("end", ["", 'event: error\ndata: {"error": {"message": "The engine died."}}\n\n'])
def test_an_answer_that_is_cut_short_is_an_error(end: str) -> None:
    km, _ = scripted(httpx.Response(200, text=f'event: delta\ndata: {{"text": "At"}}\n\n{end}'))
    stream = km.ask_stream("doc_1", "When?")
    pieces = iter(stream)
    assert next(pieces) == "At"
    with pytest.raises(ClientError, match="engine died" if end else "cut short"):
        list(pieces)


def test_a_failed_training_is_an_error() -> None:
    km, _ = scripted(
        httpx.Response(200, text='event: failed\ndata: {"error": "no memory"}\n\n'),
        httpx.Response(200, json={"job": {"state": "failed", "error": "no memory"}}),
    )
    with pytest.raises(TrainingError, match="doc_1 is failed: no memory"):
        km.wait("doc_1")


def test_both_clients_have_the_same_calls() -> None:
    def calls(client: type) -> dict[str, tuple[list[str], str | None]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {
            name: (list(inspect.signature(one).parameters), one.__doc__)
            for name, one in found
            if not name.startswith("_")
        }

    assert calls(AsyncKM) == calls(KM)


def test_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KM_API_KEY", raising=False)
    with pytest.raises(ClientError, match="Set KM_API_KEY"):
        KM()


async def test_the_main_job(url: str, ada: Someone, registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text(TEXT)

    def work() -> None:
        with KM(url, ada.key) as km:
            added = km.add_file(file, title="Harbour")
            document_id = added["document"]["id"]
            assert [one["id"] for one in km.all_documents()] == [document_id]
            train(registry, document_id, ada.principal)
            found = km.wait(document_id)
            assert found["km"] is not None
            stream = km.ask_stream(document_id, "When?", mode="km")
            text = "".join(stream)
            assert stream.answer["mode"] == "km"
            assert text.strip() == km.ask(document_id, "When?", mode="km")["answer"].strip()
            assert km.delete(document_id)["document_id"] == document_id
            assert km.documents()["documents"] == []

    await asyncio.to_thread(work)


async def test_the_main_job_with_asyncio(url: str, ada: Someone, bob: Someone, registry: Registry) -> None:
    async with AsyncKM(url, ada.key) as km:
        document_id = (await km.add("Harbour", TEXT))["document"]["id"]
        assert (await km.cancel(document_id))["job"]["state"] == "cancelled"
        await km.train(document_id)
        train(registry, document_id, ada.principal)
        assert (await km.wait(document_id))["job"]["state"] == "succeeded"
        stream = km.ask_stream(document_id, "When?", mode="km")
        text = "".join([piece async for piece in stream])
        assert text.strip() == stream.answer["answer"].strip()
        await km.share(document_id, user="Bob")
        async with AsyncKM(url, bob.key) as other:
            assert [one["id"] async for one in other.all_documents()] == [document_id]
        await km.unshare(document_id, bob.principal.user_id)
        await km.delete(document_id)
        with pytest.raises(ClientError) as caught:
            await km.document(document_id)
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    assert json.loads(json.dumps(stream.answer)) == stream.answer
