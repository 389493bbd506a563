"""Every refusal says what to change, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.engine.scripted import ScriptedEngine
from tests.unit.server.conftest import TEXT, Someone, error_of

NOTHING: tuple[list[str], list[str], int] = ([], [], 0)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"title": "t", "text": ""}, 422, "empty"),
        ({"title": "t", "text": " \n\t "}, 422, "empty"),
        ({"title": " ", "text": TEXT}, 422, "title"),
        ({"title": "t" * 301, "text": TEXT}, 422, "300"),
        ({"title": "t", "text": "a\0b"}, 422, "NUL"),
        ({"title": "t", "text": "x" * 5001}, 413, "5000"),
        ({"title": "t", "text": "é" * 2501}, 413, "5000"),
        ({"title": "t"}, 422, "text: Field required"),
        ({"text": TEXT}, 422, "title: Field required"),
        ({"title": "t", "text": 7}, 422, "text:"),
        ({"title": "t", "text": TEXT, "txt": 1}, 422, "txt: there is no such field"),
        ({"title": "t", "text": TEXT, "recipe": []}, 422, "recipe:"),
        ({"title": "t", "text": TEXT, "recipe": {str(i): i for i in range(51)}}, 422, "50"),
        ([], 422, "JSON object"),
    ],
)
async def test_json_upload(ada: Someone, stored: Any, body: Any, status: int, says: str) -> None:
    error = error_of(await ada.http.post("/documents", json=body), status)
    assert says in error["message"]
    assert TEXT not in error["message"]
    assert stored(ada) == NOTHING


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"{", 422, "not valid JSON"),
        (b"", 422, "not valid JSON"),
        (json.dumps({"title": "t", "text": "\xe9"}, ensure_ascii=False).encode("latin-1"), 400, "not UTF-8"),
        (b'{"title": "t", "text": "\\ud800"}', 422, ""),
        (b"[" * 4000, 422, "not valid JSON"),
    ],
)
async def test_unreadable_json(ada: Someone, stored: Any, content: bytes, status: int, says: str) -> None:
    response = await ada.http.post(
        "/documents", content=content, headers={"Content-Type": "application/json"}
    )
    assert says in error_of(response, status)["message"]
    assert stored(ada) == NOTHING


@pytest.mark.parametrize(
    ("name", "content", "status", "says"),
    [
        ("a.md", b"\x1f\x8b\x08 text", 415, "packed with gzip"),
        ("a.txt", b"caf\xe9", 400, "not UTF-8 (byte 3"),
        ("a.txt", "Größe".encode("utf-16"), 400, "not UTF-8"),
        ("a.txt", b"", 422, "empty"),
        ("a.txt", b" \n", 422, "empty"),
        ("a.txt", b"x" * 5001, 413, "5000"),
        ("a.txt", b"x" * 20_001, 413, "20000"),
        ("a.txt", b"x" * 200_000, 413, "20000"),
    ],
)
async def test_file_upload(
    ada: Someone, stored: Any, name: str, content: bytes, status: int, says: str
) -> None:
    response = await ada.http.post("/documents", files={"file": (name, content)})
    assert says in error_of(response, status)["message"]
    assert stored(ada) == NOTHING


async def test_form_without_file(ada: Someone, stored: Any) -> None:
    response = await ada.http.post("/documents", files={"other": ("a.txt", b"text")})
    assert error_of(response, 422)["param"] == "file"
    response = await ada.http.post("/documents", data={"file": "text"}, files={"x": ("a.txt", b"text")})
    assert error_of(response, 422)["param"] == "file"
    assert stored(ada) == NOTHING


async def test_two_files(ada: Someone, stored: Any) -> None:
    files = [("file", ("a.txt", b"text")), ("file", ("b.txt", b"text"))]
    assert "files" in error_of(await ada.http.post("/documents", files=files), 400)["message"]
    assert stored(ada) == NOTHING


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_content_types(ada: Someone, stored: Any, content_type: str) -> None:
    response = await ada.http.post("/documents", content=b"text", headers={"Content-Type": content_type})
    assert "application/json" in error_of(response, 415)["message"]
    assert stored(ada) == NOTHING


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
async def test_endless_body_is_not_read_to_its_end(ada: Someone, stored: Any, content_type: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        while True:
            sent += 1
            yield b"x" * 10_000

    response = await ada.http.post("/documents", content=endless(), headers={"Content-Type": content_type})
    assert "that this server takes" in error_of(response, 413)["message"]
    assert sent < 12
    assert stored(ada) == NOTHING


async def test_declared_length_is_refused_before_reading(ada: Someone, stored: Any) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Type": "application/json", "Content-Length": "999999999"}
    error_of(await ada.http.post("/documents", content=never(), headers=headers), 413)
    assert stored(ada) == NOTHING


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"question": ""}, 422, "question", "at least 1 character"),
        ({"question": "  "}, 422, "question", "empty"),
        ({"question": "x" * 20_001}, 422, "question", "20000"),
        ({"mode": "guess"}, 422, "mode", "'auto', 'km', 'rag', 'km+rag', 'icl' or 'base'"),
        ({"mode": "rag", "k": 0}, 422, "k", "greater than or equal to 1"),
        ({"mode": "rag", "k": 65}, 422, "k", "less than or equal to 64"),
        ({"mode": "rag", "k": "two"}, 422, "k", "integer"),
        ({"mode": "icl", "k": 2}, 422, "k", "mode icl puts no passages into the prompt"),
        ({"mode": "km", "k": 2}, 422, "k", "mode km puts no passages into the prompt"),
        ({"max_tokens": -1}, 422, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 0}, 422, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1025}, 422, "max_tokens", "1024"),
        ({"temperature": -0.1}, 422, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.1}, 422, "temperature", "less than or equal to 2"),
        ({"max_token": 3}, 422, "max_token", "no such field"),
        ({"document_id": "doc_none"}, 404, None, "not yours"),
        ({"question": "why " * 200, "mode": "base"}, 422, None, "at most 136 fit"),
        ({"max_tokens": 199, "mode": "base"}, 422, None, "lower max_tokens"),
    ],
)
async def test_answer(
    ada: Someone, engine: ScriptedEngine, fields: dict[str, Any], status: int, param: str | None, says: str
) -> None:
    document_id = await ada.upload()
    error = error_of(await ada.ask(**({"document_id": document_id, "mode": "icl"} | fields)), status)
    assert error["param"] == param
    assert says in error["message"]
    assert engine.requests == []


async def test_document_longer_than_the_context_suggests_km(ada: Someone, engine: ScriptedEngine) -> None:
    document_id = await ada.upload("word " * 300)
    message = error_of(await ada.ask(document_id, "icl"), 422)["message"]
    assert "at most 136 fit" in message
    assert "mode km" in message
    assert engine.requests == []


@pytest.mark.parametrize("content", [b"{", b'{"document_id": "\xe9"}'])
async def test_unreadable_question(ada: Someone, content: bytes) -> None:
    response = await ada.http.post("/answer", content=content, headers={"Content-Type": "application/json"})
    assert "not" in error_of(response, 422 if content == b"{" else 400)["message"]


async def test_not_json_question(ada: Someone) -> None:
    response = await ada.http.post("/answer", content=b"hello", headers={"Content-Type": "text/plain"})
    assert "JSON object" in error_of(response, 422)["message"]


async def test_body_limit_elsewhere(ada: Someone) -> None:
    error_of(await ada.http.post("/users", content=b"x" * 1_100_000), 413)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x"])
async def test_listing(ada: Someone, query: str) -> None:
    assert error_of(await ada.http.get(f"/documents?{query}"), 422)["param"] == "limit"


async def test_last_event_id(ada: Someone) -> None:
    document_id = await ada.upload()
    response = await ada.http.get(f"/documents/{document_id}/events", headers={"Last-Event-ID": "x"})
    assert "last-event-id" in error_of(response, 422)["message"]
