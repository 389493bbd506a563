"""A server's HTTP side on a real registry, without a model and without pytest: what fault, fuzz and load
checks drive in their own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from server.app import AppState, create_app
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from server.http_server import HttpServer
from server.retrieval.scripted_embedder import ScriptedEmbedder
from server.startup import listen, url_of
from tests.support import BASE_FINGERPRINT
from tests.unit.server.conftest import WordTokenizer


@dataclass(frozen=True)
class Place:
    """The application, what it serves from, and an administrator's key."""

    app: FastAPI
    state: AppState
    admin_key: str

    @property
    def registry(self) -> Registry:
        """Its records."""
        return self.state.registry


@asynccontextmanager
async def place(data_dir: Path, **settings: Any) -> AsyncIterator[Place]:
    """An application on the data directory, for as long as the block runs."""
    known = ServerSettings(
        data_dir=data_dir,
        database_url=None,
        redis_url=None,
        passage_tokens=8,
        passages_per_answer=2,
        auto_trained="km+rag",
        **settings,
    )
    notifier, tokenizer = MemoryNotifier(), WordTokenizer()
    with Registry.open(known, notifier) as registry:
        state = AppState(
            registry=registry,
            queue=MemoryJobQueue(),
            engine=ScriptedEngine(tokenizer, max_model_len=known.max_model_len),
            tokenizer=tokenizer,
            redis=notifier,
            settings=known,
            base_model=BaseModel(data_dir, "test", BASE_FINGERPRINT),
            load_embedder=ScriptedEmbedder,
        )
        _, key = registry.create_user("Root", is_admin=True)
        try:
            yield Place(create_app(state), state, key)
        finally:
            await state.retriever.close()


@dataclass(frozen=True)
class Served:
    """A place that is served over HTTP by a thread of its own."""

    place: Place
    url: str


@contextmanager
def served(data_dir: Path, **settings: Any) -> Iterator[Served]:
    """Serve a place on the loopback, for as long as the block runs."""
    found: list[Served] = []
    ready, loop_ready = threading.Event(), threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        over = asyncio.Event()
        stop.append((asyncio.get_running_loop(), over))
        loop_ready.set()
        async with place(data_dir, **settings) as made:
            with listen("127.0.0.1", 0) as listener:
                server = HttpServer(made.app, listener)
                await server.start()
                found.append(Served(made, url_of(listener)))
                ready.set()
                await over.wait()
                made.state.closing.set()
                await server.stop()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="served")
    thread.start()
    ready.wait()
    try:
        assert found, "the application did not start"
        yield found[0]
    finally:
        loop_ready.wait()
        loop, over = stop[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(over.set)
        thread.join()
        # What stops a server tells every event stream of its process.
        AppStatus.should_exit = False
