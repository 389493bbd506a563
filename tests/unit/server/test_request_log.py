"""What is logged of requests: an id for each, and never what was uploaded, asked or answered."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from httpx import AsyncClient

from km_registry.registry import Registry
from tests.unit.server.conftest import Someone, train

#: In everything that a client says, and in nothing else.
SECRET = "Quillfeather"
TEXT = f"The harbour of {SECRET} opens at six. Its bell is called Maren."


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """All that any logger says at INFO, as JSON, one line each; then as it was."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    before = structlog.get_config()
    root, level = logging.getLogger(), logging.getLogger().level
    merge = structlog.contextvars.merge_contextvars
    structlog.configure(
        processors=[merge, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # The tests' own client says what it sends; the server has the other one keep silent, see server.logs.
    silent = [logging.getLogger(name) for name in ("httpx", "mcp")]
    for logger in silent:
        logger.setLevel(logging.WARNING)
    yield written
    for logger in silent:
        logger.setLevel(logging.NOTSET)
    root.removeHandler(handler)
    root.setLevel(level)
    structlog.configure(**before)


async def _everything(ada: Someone, bob: Someone, registry: Registry) -> None:
    """The main job, and refusals of every kind, with the secret in whatever is sent."""
    document_id = await ada.upload(TEXT, SECRET)
    train(registry, document_id, ada.principal)
    question = {"document_id": document_id, "question": f"When does {SECRET} open?"}
    for mode in ("auto", "km", "rag", "km+rag", "icl", "base"):
        await ada.http.post("/answer", json=question | {"mode": mode})
        await bob.http.post("/answer", json=question | {"mode": mode})
    await ada.http.post("/answer", json=question | {"stream": True})
    await ada.http.post("/answer", json=question | {SECRET: 1})
    await ada.http.post("/answer", content=SECRET)
    messages = [{"role": "user", "content": SECRET}]
    for model in ("base", document_id, SECRET):
        await ada.http.post("/v1/chat/completions", json={"model": model, "messages": messages})
        await ada.http.post("/v1/completions", json={"model": model, "prompt": SECRET, "stream": True})
    call = {"name": "ask", "arguments": {"document_id": document_id, "question": SECRET, "k": SECRET}}
    headers = {"Accept": "application/json, text/event-stream"}
    await ada.http.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, headers=headers
    )
    await ada.http.get(f"/{SECRET}?{SECRET}={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    await ada.http.request(SECRET, "/documents")
    await ada.http.put(f"/documents/{document_id}", json={"text": f"{TEXT} {SECRET}"})
    await ada.http.delete(f"/documents/{document_id}")


async def test_no_line_holds_what_was_said(
    ada: Someone, bob: Someone, registry: Registry, lines: io.StringIO
) -> None:
    await _everything(ada, bob, registry)
    said = lines.getvalue()
    assert said.count('"event": "request"') > 20
    assert SECRET.lower() not in said.lower()
    assert "Maren" not in said


async def test_every_request_has_an_id_that_its_answer_bears(anyone: AsyncClient, lines: io.StringIO) -> None:
    made = await anyone.get("/healthz")
    given = await anyone.get("/healthz", headers={"X-Request-ID": "mine-and-plain"})
    odd = await anyone.get("/healthz", headers={"X-Request-ID": "not plain: {}"})
    told = [json.loads(line) for line in lines.getvalue().splitlines() if '"request"' in line]
    ids = [answer.headers["X-Request-ID"] for answer in (made, given, odd)]
    assert [line["request_id"] for line in told] == ids
    assert ids[1] == "mine-and-plain"
    assert (ids[0][:4], ids[2][:4], len(set(ids))) == ("req_", "req_", 3)
