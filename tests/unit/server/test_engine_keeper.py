"""An engine that died is started again, not for ever."""

from __future__ import annotations

import asyncio

import pytest

from server import engine_keeper
from server.engine.base import EngineUnavailableError, GenerationRequest
from server.engine.scripted import ScriptedEngine
from server.engine_keeper import EngineKeeper
from tests.unit.server.conftest import WordTokenizer


class MortalEngine(ScriptedEngine):
    """Starts so many times; says when it has."""

    def __init__(self, starts: int) -> None:
        super().__init__(WordTokenizer())
        self.starts = starts
        self.closed = 0
        self.came = asyncio.Event()

    async def start(self) -> None:
        if not self.starts:
            raise EngineUnavailableError("no memory")
        self.starts -= 1
        await super().start()
        self.came.set()

    async def close(self) -> None:
        self.closed += 1
        await super().close()


async def test_it_is_started_again() -> None:
    engine = MortalEngine(starts=2)
    keeper = EngineKeeper(engine, max_restarts=2)
    watching = asyncio.create_task(keeper.run(every_s=0.0))
    for round_ in (1, 2):
        engine.came.clear()
        engine.fail("killed")
        await asyncio.wait_for(engine.came.wait(), 10)
        await engine.generate(GenerationRequest((1,), 9))
        assert (keeper.restarts, engine.closed) == (round_, round_)
    await asyncio.sleep(0)
    assert keeper.reason is None
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_it_says_so_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MortalEngine(starts=1)
    keeper = EngineKeeper(engine, max_restarts=1)
    told: list[str | None] = []
    start = engine.start

    async def watched() -> None:
        told.append(keeper.reason)
        await start()

    monkeypatch.setattr(engine, "start", watched)
    engine.fail("killed")
    watching = asyncio.create_task(keeper.run(every_s=0.0))
    await asyncio.wait_for(engine.came.wait(), 10)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert told == ["The engine died and is being started again, for the 1. time."]


async def test_it_is_left_alone_in_the_end() -> None:
    engine = MortalEngine(starts=0)
    keeper = EngineKeeper(engine, max_restarts=3)
    engine.fail("killed")
    await asyncio.wait_for(keeper.run(every_s=0.0), 10)
    assert keeper.restarts == 3
    assert "more than 3 times in 10 minutes" in (keeper.reason or "")


async def test_old_restarts_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_keeper, "WINDOW_S", -1.0)
    engine = MortalEngine(starts=3)
    keeper = EngineKeeper(engine, max_restarts=1)
    watching = asyncio.create_task(keeper.run(every_s=0.0))
    for _ in range(3):
        engine.came.clear()
        engine.fail("killed")
        await asyncio.wait_for(engine.came.wait(), 10)
    assert keeper.restarts == 3
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
