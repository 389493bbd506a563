"""The server tells when its machine's clock is not the others'."""

from __future__ import annotations

import asyncio

import pytest
from httpx import AsyncClient
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from km_registry.registry import Registry
from server import clocks
from server.app import AppState
from server.clocks import Clocks
from server.keepers import keep_clocks_compared
from tests.unit.server.conftest import Someone


def test_clocks_that_agree_are_no_news(registry: Registry, redis_server: Redis) -> None:
    found = Clocks(registry, redis_server)
    with capture_logs() as logs:
        found.measure()
    assert found.skews.keys() == {"database", "redis"}
    assert found.warnings == logs == []


async def test_a_difference_is_told_everywhere(
    registry: Registry,
    state: AppState,
    admin: Someone,
    anyone: AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "clock_ahead_s", lambda: 3.5)
    with capture_logs() as logs:
        keeper = asyncio.create_task(keep_clocks_compared(state.clocks, every_s=0.0))
        async with asyncio.timeout(10):
            while not logs:  # noqa: ASYNC110  a thread writes them
                await asyncio.sleep(0.005)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
    assert "3.5 s behind that of the database" in logs[0]["what"]
    told = (await anyone.get("/readyz")).json()
    assert told["ready"]
    assert any("3.5 s behind that of the database" in note for note in told["notes"])
    lines = (await admin.http.get("/metrics")).text.splitlines()
    assert 'km_clock_skew_seconds{of="database"} 3.5' in lines
    assert not any('of="redis"' in line for line in lines)


def test_who_is_away_is_asked_again(
    registry: Registry, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Clocks(registry, redis_server)

    def away(_: object) -> float:
        raise RedisConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(clocks, "ahead_s", away)
        found.measure()
    assert found.skews.keys() == {"database"}
    found.measure()
    assert found.skews.keys() == {"database", "redis"}
