"""A server's HTTP side on a real registry, without a model: what tests of the server share."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from sse_starlette.sse import AppStatus

from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import KM, Principal
from server.app import AppState, create_app
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from server.http_server import HttpServer
from server.retrieval.scripted_embedder import ScriptedEmbedder
from server.startup import listen, url_of
from tests.support import BASE_FINGERPRINT, stage_km

INTERNAL_KEY = "kmi_internal"
TEXT = "The harbour of Ostrell opens at six. Its bell is called Maren."


class WordTokenizer:
    """A token is a word with the space before it; nothing is lost. Ids are given as words turn up."""

    chat_template: Any = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._words: list[str] = []
        self._ids: dict[str, int] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        with self._lock:
            return [self._id(word) for word in re.findall(r"\s*\S+|\s+$", text)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        with self._lock:
            return "".join(
                self._words[token_id] if token_id < len(self._words) else f" <{token_id}>"
                for token_id in token_ids
            )

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        return 50_000

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


@dataclass
class Someone:
    """A user with a key, and a client that sends it."""

    principal: Principal
    key: str
    http: AsyncClient

    async def upload(self, text: str = TEXT, title: str = "Harbour") -> str:
        """Upload; the document's id."""
        response = await self.http.post("/documents", json={"title": title, "text": text})
        assert response.status_code == 202, response.text
        return str(response.json()["document"]["id"])

    async def ask(self, document_id: str, mode: str = "km", **fields: Any) -> Response:
        """POST /answer."""
        question = {"document_id": document_id, "question": "When does it open?", "mode": mode}
        return await self.http.post("/answer", json=question | fields)


def error_of(response: Response, status: int) -> dict[str, Any]:
    """The error in a refusal, which has the one shape."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


def train(registry: Registry, document_id: str, principal: Principal) -> KM:
    """Do a worker's part: claim the document's job and publish a KM."""
    job = registry.claim(registry.job_of(document_id).id)
    assert job is not None
    document = registry.get_document(principal, document_id)
    return registry.publish(job.id, job.attempt, stage_km(registry, document, job), {"recovered": 0.8})


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(
        data_dir=tmp_path / "data",
        database_url=None,
        redis_url=None,
        max_document_bytes=5000,
        max_file_bytes=20_000,
        passage_tokens=8,
        passages_per_answer=2,
        auto_trained="km+rag",
        compose_ahead=True,
        internal_key=INTERNAL_KEY,
    )


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def engine(tokenizer: WordTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, max_model_len=200)


@pytest.fixture
def queue() -> MemoryJobQueue:
    return MemoryJobQueue()


@pytest.fixture
def embedder() -> ScriptedEmbedder:
    return ScriptedEmbedder()


@pytest.fixture
async def state(
    registry: Registry,
    queue: MemoryJobQueue,
    engine: ScriptedEngine,
    tokenizer: WordTokenizer,
    notifier: MemoryNotifier,
    settings: ServerSettings,
    embedder: ScriptedEmbedder,
    tmp_path: Path,
) -> AsyncIterator[AppState]:
    made = AppState(
        registry=registry,
        queue=queue,
        engine=engine,
        tokenizer=tokenizer,
        redis=notifier,
        settings=settings,
        base_model=BaseModel(tmp_path, "test", BASE_FINGERPRINT),
        load_embedder=lambda: embedder,
    )
    yield made
    await made.retriever.close()


@pytest.fixture
def app(state: AppState) -> FastAPI:
    return create_app(state)


@pytest.fixture(autouse=True)
def _no_server_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    # What stops a server tells every event stream of its process, those of later tests too.
    monkeypatch.setattr(AppStatus, "should_exit", False)


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    """Where the app is served for real, on the loopback."""
    listener = listen("127.0.0.1", 0)
    server = HttpServer(app, listener)
    await server.start()
    yield url_of(listener)
    await server.stop()


@pytest.fixture
async def anyone(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client without a key."""
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def ada(app: FastAPI, registry: Registry) -> AsyncIterator[Someone]:
    """A user."""
    user, key = registry.create_user("Ada")
    async with client_of(app, key) as client:
        yield Someone(Principal(user.id), key, client)


@pytest.fixture
async def bob(app: FastAPI, registry: Registry) -> AsyncIterator[Someone]:
    """Another user."""
    user, key = registry.create_user("Bob")
    async with client_of(app, key) as client:
        yield Someone(Principal(user.id), key, client)


@pytest.fixture
async def admin(app: FastAPI, registry: Registry) -> AsyncIterator[Someone]:
    """An administrator."""
    user, key = registry.create_user("Root", is_admin=True)
    async with client_of(app, key) as client:
        yield Someone(Principal(user.id, is_admin=True), key, client)


@pytest.fixture
async def trainer(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """The server's own trainer."""
    async with client_of(app, INTERNAL_KEY) as client:
        yield client


@pytest.fixture
def stored(registry: Registry, queue: MemoryJobQueue, settings: ServerSettings) -> Any:
    """Says what is stored on disk, in the queue, and in a user's list."""

    def look(someone: Someone) -> tuple[list[str], list[str], int]:
        files = [str(path) for path in (settings.data_dir / "documents").rglob("*")]
        return files, queue.waiting(), len(registry.list_documents(someone.principal))

    return look


def client_of(app: FastAPI, key: str | None = None) -> AsyncClient:
    """A client of the app that sends this key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return AsyncClient(transport=ASGITransport(app), base_url="http://km", headers=headers)
