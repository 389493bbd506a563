"""The gateway in this process over an engine that runs: documents with KMs, and a client with a key."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from httpx import AsyncClient, Limits

from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, Principal
from server.app import AppState, create_app
from server.config import ServerSettings
from server.engine.base import Engine
from server.http_server import HttpServer
from server.startup import listen, url_of
from server.tokenizer import Tokenizer

#: Writes a KM of the document into the directory, which is not there yet.
WriteKM = Callable[[Path, Document], object]


@dataclass(slots=True)
class Served:
    """A gateway with one user."""

    state: AppState
    http: AsyncClient
    principal: Principal
    write_km: WriteKM
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def staged(self) -> tuple[Document, Job, Path]:
        """A new document whose KM lies ready to be published."""

        def stage() -> tuple[Document, Job, Path]:
            registry, number = self.state.registry, next(self._numbers)
            text = f"Document {number}. The harbour opens at {number} in the morning."
            document, job, _ = registry.add_document(self.principal, f"Document {number}", text)
            claimed = registry.claim(job.id)
            assert claimed is not None
            directory = registry.work_dir(job.id) / "staged"
            self.write_km(directory, document)
            return document, claimed, directory

        return await asyncio.to_thread(stage)

    async def publish(self, job: Job, directory: Path) -> KM:
        """Do what a worker does at the end."""
        return await asyncio.to_thread(self.state.registry.publish, job.id, job.attempt, directory, {})

    async def published(self) -> str:
        """A new document with its KM; its id."""
        document, job, directory = await self.staged()
        await self.publish(job, directory)
        return document.id


@asynccontextmanager
async def served(
    engine: Engine, tokenizer: Tokenizer, model: BaseModel, data_dir: Path, write_km: WriteKM
) -> AsyncIterator[Served]:
    """The gateway on a free port of the loopback. The engine runs, and goes on running."""
    settings = ServerSettings(data_dir=data_dir, database_url=None, redis_url=None, embedder="none")
    notifier = MemoryNotifier()
    with Registry.open(settings, notifier) as registry:
        user, key = registry.create_user("bench")
        state = AppState(
            registry=registry,
            queue=MemoryJobQueue(),
            engine=engine,
            tokenizer=tokenizer,
            redis=notifier,
            settings=settings,
            base_model=model,
        )
        listener = listen("127.0.0.1", 0)
        server = HttpServer(create_app(state), listener)
        await server.start()
        try:
            async with AsyncClient(
                base_url=url_of(listener),
                headers={"Authorization": f"Bearer {key}"},
                timeout=120,
                limits=Limits(max_connections=64, max_keepalive_connections=64),
                trust_env=False,
            ) as http:
                yield Served(state, http, Principal(user.id), write_km)
        finally:
            await server.stop()
            await state.retriever.close()
