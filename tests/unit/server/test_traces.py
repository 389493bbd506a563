"""What a collector gets of requests: where the time went, and nothing of what was sent or answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from httpx import AsyncClient
from redis import Redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from km_registry.jobs import JobQueue, MemoryJobQueue, RqJobQueue, reconcile
from km_registry.registry import Registry
from km_registry.tracing import Tracing
from server.app import create_app
from server.composition import worker_environment
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from server.state import AppState
from tests.otlp import Collector, Received, collecting
from tests.unit.server.conftest import Someone, client_of, train

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=Quillfeather"}
#: In everything that a client says, and in nothing else.
SECRET = "Quillfeather"
TEXT = f"The harbour of {SECRET} opens at six. Its bell is called Maren."


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture
def tracing(collector: Collector, state: AppState) -> Iterator[Tracing]:
    """Has the gateway traced; whoever closes it, as its stop does, has everything at the collector."""
    with closing(Tracing.to(collector.endpoint, "km-gateway")) as made:
        state.tracing = made
        yield made


@pytest.fixture
def app(tracing: Tracing, app: object) -> object:
    """The app, traced from its first request on."""
    return app


def _children(collector: Collector, of: Received) -> list[str]:
    return sorted(span.name for span in collector.spans if span.parent == of.id)


async def test_an_answer_is_one_trace_of_the_clients(
    ada: Someone, registry: Registry, collector: Collector, tracing: Tracing
) -> None:
    document_id = await ada.upload(TEXT, SECRET)
    train(registry, document_id, ada.principal)
    question = {"document_id": document_id, "question": f"When does {SECRET} open?", "mode": "km+rag"}
    answered = await ada.http.post("/answer", json=question, headers=TRACEPARENT)
    tracing.close()

    request = collector.one("POST /answer")
    assert (request.trace, request.parent, request.service, request.kind) == (TRACE, PARENT, "km-gateway", 2)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/answer",
        "http.response.status_code": 200,
        "km.request_id": answered.headers["X-Request-ID"],
        "km.user_id": ada.principal.user_id,
    }
    assert _children(collector, request) == ["generate", "retrieve"]
    retrieve, generate = collector.one("retrieve"), collector.one("generate")
    assert retrieve.trace == generate.trace == TRACE
    found = answered.json()
    assert retrieve.attributes == {"km.document_id": document_id, "km.k": 2, "km.passages": 2, "km.of": 2}
    assert generate.attributes == {
        "km.mode": "km+rag",
        "km.prompt_tokens": found["prompt_tokens"],
        "km.completion_tokens": found["completion_tokens"],
        "km.adapter": True,
        "km.streamed": False,
    }
    assert generate.seconds <= request.seconds


async def test_a_streams_span_lasts_as_long_as_the_stream(
    ada: Someone, collector: Collector, tracing: Tracing
) -> None:
    document_id = await ada.upload(TEXT, SECRET)
    told = await ada.ask(document_id, "icl", stream=True)
    asked = {"model": "base", "messages": [{"role": "user", "content": SECRET}], "stream": True, "n": 2}
    chat = await ada.http.post("/v1/chat/completions", json=asked, headers=TRACEPARENT)
    tracing.close()

    assert (told.status_code, chat.status_code) == (200, 200)
    answer = json.loads(told.text.split("event: answer\ndata: ")[1].splitlines()[0])
    (one,) = [span for span in collector.named("generate") if span.attributes["km.mode"] == "icl"]
    assert one.parent == collector.one("POST /answer").id
    assert one.attributes["km.completion_tokens"] == answer["completion_tokens"] > 0
    assert (one.attributes["km.streamed"], one.attributes["km.adapter"]) == (True, False)
    assert _children(collector, collector.one("POST /v1/chat/completions")) == ["generate", "generate"]


async def test_a_stream_that_is_closed_is_cut_short_and_nothing_went_wrong(
    ada: Someone, url: str, collector: Collector, tracing: Tracing, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload(TEXT)
    question = {"document_id": document_id, "question": "When?", "mode": "base", "stream": True}
    engine.hold(after_tokens=1)
    async with (
        AsyncClient(base_url=url, headers={"Authorization": f"Bearer {ada.key}"}) as http,
        http.stream("POST", "/answer", json=question) as response,
    ):
        await anext(response.aiter_lines())
        await asyncio.wait_for(engine.until_streamed(1), 10)
    await asyncio.wait_for(state.in_flight.drain(document_id), 10)
    tracing.close()

    one = collector.one("generate")
    assert (one.failed, one.attributes["km.cut_short"], one.attributes["km.completion_tokens"]) == (
        False,
        True,
        1,
    )


async def test_nothing_that_was_said_is_sent(
    ada: Someone, bob: Someone, registry: Registry, collector: Collector, tracing: Tracing
) -> None:
    document_id = await ada.upload(TEXT, SECRET)
    train(registry, document_id, ada.principal)
    question = {"document_id": document_id, "question": f"When does {SECRET} open?"}
    for mode in ("auto", "km", "rag", "km+rag", "icl", "base"):
        for someone in (ada, bob):
            sent = question | {"mode": mode, "stream": mode == "auto"}
            await someone.http.post("/answer", json=sent, headers=TRACEPARENT)
    messages = [{"role": "user", "content": SECRET}]
    for model in ("base", document_id, SECRET):
        await ada.http.post("/v1/chat/completions", json={"model": model, "messages": messages})
        await ada.http.post("/v1/completions", json={"model": model, "prompt": SECRET, "stream": True})
    call = {"name": "ask", "arguments": {"document_id": document_id, "question": SECRET}}
    accept = {"Accept": "application/json, text/event-stream"}
    await ada.http.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, headers=accept
    )
    files = {"file": (f"{SECRET}.txt", TEXT.encode(), "text/plain")}
    await ada.http.post("/documents", files=files)
    await ada.http.request(SECRET.upper(), f"/{SECRET}?{SECRET}=1", headers={"traceparent": SECRET})
    await ada.http.get(f"/documents/{SECRET}")
    tracing.close()

    # An MCP client's question is answered in its request's trace too.
    assert "generate" in _children(collector, collector.one("POST /mcp"))
    assert len(collector.spans) > 30
    for text in (SECRET, SECRET.upper(), "Maren", ada.key, "harbour", "vendor"):
        assert text.encode() not in collector.raw


async def test_what_fails_says_its_kind(
    ada: Someone, engine: ScriptedEngine, collector: Collector, tracing: Tracing
) -> None:
    document_id = await ada.upload()
    await engine.close()
    answered = await ada.ask(document_id, "base")
    tracing.close()

    assert answered.status_code == 503
    request, generate = collector.one("POST /answer"), collector.one("generate")
    assert (request.failed, request.attributes["error.type"]) == (True, "503")
    assert (generate.failed, generate.attributes["error.type"]) == (True, "EngineUnavailableError")


async def test_a_collector_that_is_not_there_disturbs_no_answer(ada: Someone, state: AppState) -> None:
    document_id = await ada.upload()
    with closing(Tracing.to("http://127.0.0.1:9", "km-gateway")) as nobody:
        state.tracing = nobody
        async with client_of(create_app(state), ada.key) as http:
            question = {"document_id": document_id, "question": "When?", "mode": "rag"}
            began = time.monotonic()
            answers = [await http.post("/answer", json=question, headers=TRACEPARENT) for _ in range(20)]
            assert time.monotonic() - began < 10
    assert {answer.status_code for answer in answers} == {200}


# --- upload → worker ---------------------------------------------------------------------------------------


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> JobQueue:
    """The real queue where the test wants it."""
    if "redis_server" in request.fixturenames:
        return RqJobQueue(request.getfixturevalue("redis_server"))
    return MemoryJobQueue()


async def test_the_upload_trace_waits_with_the_job_for_its_worker(
    ada: Someone, registry: Registry, collector: Collector, tracing: Tracing, redis_server: Redis
) -> None:
    sent = {"title": SECRET, "text": TEXT}
    made = await ada.http.post("/documents", json=sent, headers=TRACEPARENT)
    tracing.close()

    claimed = registry.claim(made.json()["job"]["id"])
    assert claimed is not None
    upload = collector.one("POST /documents")
    assert RqJobQueue(redis_server).traceparent_of(claimed) == f"00-{TRACE}-{upload.id}-01"
    entry = RqJob.fetch(f"{claimed.id}-0", connection=redis_server, serializer=JSONSerializer)
    assert list(entry.meta) == ["traceparent"]


async def test_a_job_that_is_enqueued_again_brings_no_trace(
    ada: Someone, registry: Registry, tracing: Tracing, redis_server: Redis
) -> None:
    document_id = await ada.upload()
    first = registry.claim(registry.job_of(document_id).id)
    assert first is not None
    registry.release(first.id, first.attempt)
    queue = RqJobQueue(redis_server)
    reconcile(registry, queue)
    second = registry.claim(first.id)
    assert second is not None
    assert queue.traceparent_of(first) is not None
    assert queue.traceparent_of(second) is None
    queue.stop(first.id)
    assert queue.traceparent_of(second) is None


def test_the_worker_is_told_where_the_collector_is(settings: ServerSettings, state: AppState) -> None:
    def told(endpoint: str | None) -> str:
        given = settings.model_copy(update={"otlp_endpoint": endpoint})
        url = "http://there"
        made = worker_environment(given, redis_url="", server_url=url, model=state.base_model)
        return made["KM_OTLP_ENDPOINT"]

    assert told("http://collector:4318") == "http://collector:4318"
    assert told(None) == ""
