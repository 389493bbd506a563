"""Gateways of one database in one process, each with an engine and a data directory of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from km_registry.base_model import BaseModel
from km_registry.events import MemoryNotifier
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.tables import EvictionRow, GatewayRow
from km_registry.types import Principal
from server.app import AppState, create_app
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from server.keepers import keep_in_fleet
from server.retrieval.scripted_embedder import ScriptedEmbedder
from tests.support import BASE_FINGERPRINT
from tests.unit.server.conftest import INTERNAL_KEY, Someone, WordTokenizer, client_of


@dataclass
class Running:
    """A gateway that serves, and Ada's client of it."""

    state: AppState
    engine: ScriptedEngine
    registry: Registry
    ada: Someone

    @property
    def id(self) -> str:
        return self.state.fleet.gateway.id


class Site:
    """What the gateways share: a database and a store."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.folder = folder
        (folder / "share").mkdir()
        self._key: str | None = None
        self._ada: Principal | None = None

    def settings(self, name: str) -> ServerSettings:
        return ServerSettings(
            data_dir=self.folder / name,
            database_url=self.database_url,
            redis_url=None,
            store_url=f"file://{self.folder / 'share'}",
            passage_tokens=8,
            passages_per_answer=2,
            auto_trained="km",
            internal_key=INTERNAL_KEY,
        )

    @asynccontextmanager
    async def gateway(
        self, name: str, *, beats: bool = True, fingerprint: str = BASE_FINGERPRINT
    ) -> AsyncIterator[Running]:
        """One that has joined, and looks every 10 ms. One that does not beat has a clock that stands."""
        settings, tokenizer, notifier = self.settings(name), WordTokenizer(), MemoryNotifier()
        registry = await asyncio.to_thread(Registry.open, settings, notifier)
        engine = ScriptedEngine(tokenizer, max_model_len=200)
        state = AppState(
            registry=registry,
            queue=MemoryJobQueue(),
            engine=engine,
            tokenizer=tokenizer,
            redis=notifier,
            settings=settings,
            base_model=BaseModel(self.folder, "test", fingerprint),
            load_embedder=ScriptedEmbedder,
        )
        async with AsyncExitStack() as stack:
            stack.callback(registry.close)
            stack.push_async_callback(state.retriever.close)
            if not beats:
                now = state.fleet.fence.clock()
                state.fleet.fence.clock = lambda: now
            await state.fleet.join(registry.installation.take_home())
            stack.push_async_callback(state.fleet.leave)
            if beats:
                await stack.enter_async_context(beating(state))
            http = await stack.enter_async_context(client_of(create_app(state), self._ada_key(registry)))
            assert self._ada is not None
            assert self._key is not None
            yield Running(state, engine, registry, Someone(self._ada, self._key, http))

    def silence(self, running: Running, seconds: float = 20.0) -> None:
        """Have the database believe that the gateway was silent for so long."""
        with running.registry._store.database.writing() as session:
            row = session.get(GatewayRow, running.id)
            assert row is not None
            row.seen_at -= timedelta(seconds=seconds)

    def _ada_key(self, registry: Registry) -> str:
        if self._key is None:
            user, self._key = registry.create_user("Ada")
            self._ada = Principal(user.id)
        return self._key


@asynccontextmanager
async def beating(state: AppState) -> AsyncIterator[None]:
    """The gateway's keeper, for as long as the block runs."""
    keeper = asyncio.create_task(
        keep_in_fleet(state.fleet, state.letting_go, state.engine_keeper, every_s=0.01)
    )
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await state.letting_go.settled()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a keeper brings about, which has no event of its own."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def acknowledged(running: Running) -> set[tuple[str, str]]:
    """What was acknowledged, and by whom."""
    with running.registry._store.database.reading() as session:
        return {(row.subject, row.gateway_id) for row in session.scalars(select(EvictionRow))}
