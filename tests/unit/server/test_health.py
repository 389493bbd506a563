"""Health, readiness, metrics and the description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from km_registry.registry import Registry
from km_registry.types import JobState
from server.app import AppState
from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import Someone, error_of, train


async def test_alive(anyone: AsyncClient) -> None:
    assert (await anyone.get("/healthz")).json() == {"status": "ok"}


async def test_ready(anyone: AsyncClient) -> None:
    response = await anyone.get("/readyz")
    assert (response.status_code, response.json()) == (
        200,
        {"ready": True, "missing": [], "retrieval": "loading", "notes": []},
    )


async def test_what_is_missing(
    anyone: AsyncClient, state: AppState, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.running = False
    state.redis = Redis(unix_socket_path=str(tmp_path / "none"), retry=Retry(NoBackoff(), 0))
    response = await anyone.get("/readyz")
    await state.redis.aclose()
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["missing"] == ["engine", "redis"]


async def test_a_dead_engine_is_explained(
    anyone: AsyncClient, state: AppState, engine: ScriptedEngine
) -> None:
    state.engine_keeper.reason = "The engine died and is being started again, for the 1. time."
    engine.running = False
    told = (await anyone.get("/readyz")).json()
    assert (told["missing"], told["notes"]) == (["engine"], [state.engine_keeper.reason])


async def test_not_ready_while_stopping(anyone: AsyncClient, state: AppState) -> None:
    state.closing.set()
    assert (await anyone.get("/readyz")).json()["missing"] == ["the server is stopping"]


async def test_metrics(admin: Someone, ada: Someone, trainer: AsyncClient, registry: Registry) -> None:
    document_id = await ada.upload()
    await ada.ask(document_id, "icl")
    await ada.ask("doc_unknown", "icl")
    await ada.http.get("/some/text/of/a/client")
    await trainer.post("/v1/completions", json={"model": "base", "prompt": "a b", "max_tokens": 3})
    response = await admin.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert 'km_http_requests_total{method="POST",route="/answer",status="200"} 1.0' in lines
    assert 'km_http_requests_total{method="POST",route="/answer",status="404"} 1.0' in lines
    assert 'km_http_requests_total{method="POST",route="/documents",status="202"} 1.0' in lines
    assert 'km_http_requests_total{method="GET",route="(none)",status="404"} 1.0' in lines
    assert 'km_answer_milliseconds_count{mode="icl"} 1.0' in lines
    assert 'km_tokens_total{kind="completion",mode="icl"} 4.0' in lines
    assert 'km_tokens_total{kind="prompt",mode="synthesis"} 2.0' in lines
    assert document_id not in response.text
    assert "client" not in response.text


async def test_metrics_of_the_engine(
    admin: Someone, ada: Someone, registry: Registry, engine: ScriptedEngine, state: AppState
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    for model in (document_id, document_id, "base"):
        await ada.http.post("/v1/completions", json={"model": model, "prompt": "a b", "max_tokens": 3})
    state.guarded.refused = 2
    text = (await admin.http.get("/metrics")).text
    lines = text.splitlines()
    for line in (
        'km_first_token_milliseconds_count{mode="km"} 2.0',
        'km_tokens_total{kind="completion",mode="base"} 3.0',
        'km_adapter_slots{state="idle"} 1.0',
        'km_adapter_slots{state="free"} 3.0',
        'km_adapter_requests_total{found="slot"} 1.0',
        'km_adapter_requests_total{found="memory"} 0.0',
        'km_adapter_requests_total{found="disk"} 1.0',
        "km_adapter_requests_waiting 0.0",
        'km_adapter_moves_total{to="slot"} 1.0',
        'km_adapter_evictions_total{tier="slot"} 0.0',
        'km_engine_requests{state="waiting"} 0.0',
        'km_requests_refused_total{reason="queue"} 2.0',
        "km_engine_restarts_total 0.0",
    ):
        assert line in lines, line
    assert km.id not in text
    engine.running = False
    text = (await admin.http.get("/metrics")).text
    assert "km_adapter_slots" not in text
    assert "km_engine_restarts_total 0.0" in text


async def test_what_is_kept_is_counted(
    admin: Someone, ada: Someone, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(_: Registry) -> tuple[int, Mapping[JobState, int]]:
        return 3, {JobState.FAILED: 2}

    monkeypatch.setattr(Registry, "counts", counts, raising=False)
    lines = (await admin.http.get("/metrics")).text.splitlines()
    assert "km_documents 3.0" in lines
    assert 'km_jobs{state="failed"} 2.0' in lines
    assert 'km_jobs{state="queued"} 0.0' in lines


async def test_description(ada: Someone, app: FastAPI) -> None:
    description = (await ada.http.get("/openapi.json")).json()
    assert description["info"]["title"] == "KM Server"
    assert list(description["components"]["securitySchemes"]) == ["API key"]
    for path, item in description["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            assert operation["description"]
            assert operation["tags"]
            if path in ("/healthz", "/readyz"):
                assert "security" not in operation
            else:
                assert operation["security"] == [{"API key": []}]
                assert operation["responses"]["401"]["content"]["application/json"]["schema"]
    upload = description["paths"]["/documents"]["post"]["requestBody"]["content"]
    assert set(upload) == {"application/json", "multipart/form-data"}
    assert upload["application/json"]["schema"]["examples"]


async def test_unexpected_errors_quote_nothing(
    ada: Someone, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("text of a document")

    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    monkeypatch.setattr(registry, "read_text", broken)
    ada.http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
    error = error_of(await ada.ask(document_id, "icl"), 500)
    assert error["code"] == "internal"
    assert "text of a document" not in error["message"]
