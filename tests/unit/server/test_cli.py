"""The command line: what each command asks for, how it fails, and that starting it is light."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server import cli

EVENTS = (
    'event: queued\nid: 1\ndata: {"stage": "waiting"}\n\n: ping\n\n'
    'event: progress\nid: 2\ndata: {"stage": "training", "step": 3,\ndata: "loss": 0.123456}\n\n'
    "event: published\nid: 3\ndata: {}\n\n"
)
DOCUMENT = {"id": "doc_1", "title": "Harbour", "size_bytes": 12, "created_at": "2026-01-31T12:00:00Z"}


class FakeApi:
    """Answers like the HTTP API and records what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any, str | None]] = []
        self.replies: dict[tuple[str, str], tuple[int, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def replies_with(self, method: str, path: str, body: Any, status: int = 200) -> None:
        self.replies[method, path] = (status, body if isinstance(body, str) else json.dumps(body))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                sent = json.loads(self.rfile.read(length)) if length else None
                api.requests.append((self.command, self.path, sent, self.headers["Authorization"]))
                status, body = api.replies[self.command, self.path]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_DELETE = _serve

            def log_message(self, *arguments: Any) -> None:
                """Keep the tests' output clean."""

        return Handler


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    monkeypatch.setenv("KM_URL", fake.url)
    monkeypatch.setenv("KM_API_KEY", "km_secret")
    yield fake
    fake.close()


def km(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_importing_it_is_light() -> None:
    heavy = ("torch", "transformers", "vllm", "fastapi", "uvicorn", "sqlalchemy", "httpx", "redis")
    code = f"import sys, server.cli; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_help_names_every_command() -> None:
    shown = km("--help").output

    for command in ("serve", "worker", "version", "demo", "add", "ls", "ask", "rm", "watch"):
        assert f" {command} " in shown


def test_add(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("It opens at six.", encoding="utf-8")
    api.replies_with("POST", "/documents", {"document": DOCUMENT, "job": {"state": "queued"}}, 202)

    done = km("add", str(file))

    assert done.output == "doc_1  Harbour  queued\n"
    sent = {"title": "harbour", "text": "It opens at six."}
    assert api.requests == [("POST", "/documents", sent, "Bearer km_secret")]


def test_add_refuses_what_is_not_utf8(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "harbour.txt"
    file.write_bytes(b"\xff\xfe")

    done = km("add", str(file))

    assert done.exit_code == 2
    assert "not UTF-8" in done.stderr
    assert api.requests == []


def test_ls(api: FakeApi) -> None:
    api.replies_with("GET", "/documents", {"documents": [DOCUMENT], "next_before": None})

    assert km("ls").output.split()[-5:] == ["doc_1", "12", "2026-01-31", "12:00", "Harbour"]


def test_ask(api: FakeApi) -> None:
    api.replies_with("POST", "/answer", {"answer": "At six."})

    done = km("ask", "doc_1", "When?", "--mode", "icl", "--max-tokens", "5")

    assert done.output == "At six.\n"
    expected = {"document_id": "doc_1", "question": "When?", "mode": "icl", "max_tokens": 5}
    assert api.requests[0][2] == expected


def test_rm(api: FakeApi) -> None:
    api.replies_with("DELETE", "/documents/doc_1", {"document_id": "doc_1"})

    assert json.loads(km("rm", "doc_1").output) == {"document_id": "doc_1"}


def test_watch(api: FakeApi) -> None:
    api.replies_with("GET", "/documents/doc_1/events", EVENTS)

    assert km("watch", "doc_1").output.splitlines() == [
        "queued     stage waiting",
        "progress   stage training  step 3  loss 0.1235",
        "published",
    ]


@pytest.mark.parametrize("arguments", [("ls",), ("watch", "doc_1")])
def test_a_refusal_is_one_line(arguments: tuple[str, ...], api: FakeApi) -> None:
    refusal = {"error": {"message": "This API key is not known here."}}
    api.replies_with("GET", "/documents", refusal, 401)
    api.replies_with("GET", "/documents/doc_1/events", refusal, 401)

    done = km(*arguments)

    assert done.exit_code == 1
    assert done.stderr == "km: This API key is not known here. (HTTP 401)\n"


@pytest.mark.parametrize("arguments", [("ls",), ("watch", "doc_1")])
def test_no_server_is_one_line(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("KM_API_KEY", "km_secret")

    done = km(*arguments)

    assert done.exit_code == 1
    assert done.stderr.startswith("km: No answer from http://127.0.0.1:1")
    assert "`km serve`" in done.stderr


def test_no_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KM_API_KEY", raising=False)

    done = km("ls")

    assert done.exit_code == 2
    assert done.stderr.startswith("km: Set KM_API_KEY")


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_PORT", "seven")

    done = km("serve")

    assert done.exit_code == 2
    assert done.stderr.startswith("km: The setting KM_PORT is wrong")
    assert done.stderr.count("\n") == 1


def test_worker_needs_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("KM_REDIS_URL", raising=False)

    done = km("worker")

    assert done.exit_code == 2
    assert "REDIS_URL" in done.stderr


def test_worker_takes_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Any] = []
    monkeypatch.setattr(cli.os, "execve", lambda *arguments: called.append(arguments))

    km("worker", "--redis-url", "redis://r", "--data-dir", str(tmp_path), "--generator-url", "http://g/v1")

    (_, command, environment) = called[0]
    assert command == [sys.executable, "-m", "trainer_worker"]
    assert environment["REDIS_URL"] == "redis://r"
    assert environment["KM_DATABASE_URL"] == f"sqlite:///{tmp_path}/registry.sqlite3"
    assert environment["KM_GENERATOR_URL"] == "http://g/v1"
