"""Requests and tokens are counted for each key and each user; beyond its limits each of them waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from limits.storage import MemoryStorage, RedisStorage, Storage
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from km_registry.types import Principal
from server.app import AppState
from server.config import ServerSettings
from server.errors import RateLimitedError
from server.limiting import Limiter
from tests.unit.server.conftest import Someone, client_of, error_of

ADA = Principal("usr_ada", key_id="key_laptop")
ADAS_PHONE = Principal("usr_ada", key_id="key_phone")
BOB = Principal("usr_bob", key_id="key_bob")


def limited(path: Path, **limits: int) -> ServerSettings:
    return ServerSettings(data_dir=path, database_url=None, redis_url=None, **limits)


@pytest.fixture(params=["memory", "redis"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Where it is counted."""
    if request.param == "memory":
        return MemoryStorage()
    redis: Redis = request.getfixturevalue("redis_server")
    return RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix="km:limits")


def counted(call: Callable[[Principal], None], principal: Principal) -> int:
    """How many calls go through, of many."""
    for number in range(20):
        try:
            call(principal)
        except RateLimitedError:
            return number
    return 20


def test_each_key_has_its_requests(tmp_path: Path, storage: Storage) -> None:
    limiter = Limiter(limited(tmp_path, key_requests_per_minute=3), storage)
    assert counted(limiter.request, ADA) == 3
    assert counted(limiter.request, ADAS_PHONE) == 3
    assert counted(limiter.request, BOB) == 3


def test_the_keys_of_a_user_share_the_users_requests(tmp_path: Path, storage: Storage) -> None:
    limiter = Limiter(limited(tmp_path, user_requests_per_minute=3), storage)
    limiter.request(ADA)
    assert counted(limiter.request, ADAS_PHONE) == 2
    assert counted(limiter.request, ADA) == 0
    assert counted(limiter.request, BOB) == 3


@pytest.mark.parametrize("limit", ["key_tokens_per_minute", "user_tokens_per_minute"])
def test_tokens_are_counted_when_they_are_known(tmp_path: Path, storage: Storage, limit: str) -> None:
    limiter = Limiter(limited(tmp_path, **{limit: 100}), storage)
    limiter.spend(ADA, 99)
    limiter.admit(ADA)
    limiter.spend(ADA, 50)
    with pytest.raises(RateLimitedError, match="100 tokens") as raised:
        limiter.admit(ADA)
    assert 1 <= raised.value.retry_after_s <= 60
    limiter.admit(BOB)


def test_servers_count_together(tmp_path: Path, redis_server: Redis) -> None:
    settings = limited(tmp_path, user_requests_per_minute=3)
    first, second = [
        Limiter(settings, RedisStorage("redis://", connection_pool=redis_server.connection_pool))
        for _ in range(2)
    ]
    first.request(ADA)
    assert counted(second.request, ADA) == 2


def test_without_redis_each_counts_for_itself(tmp_path: Path) -> None:
    nowhere = Redis(unix_socket_path=str(tmp_path / "none"), retry=Retry(NoBackoff(), 0))
    away = RedisStorage("redis://", connection_pool=nowhere.connection_pool)
    limiter = Limiter(limited(tmp_path, user_requests_per_minute=3), away)
    assert counted(limiter.request, ADA) == 3


def test_a_redis_that_is_away_is_not_asked_for_every_request(tmp_path: Path) -> None:
    asked = []

    class Away(MemoryStorage):
        def incr(self, key: str, *_: Any, **__: Any) -> int:
            asked.append(key)
            raise RedisConnectionError

    limiter = Limiter(limited(tmp_path, user_requests_per_minute=3), Away())
    assert counted(limiter.request, ADA) == 3
    assert len(asked) == 1


def test_without_settings_nothing_is_limited(tmp_path: Path) -> None:
    limiter = Limiter(limited(tmp_path))
    assert (limiter.limits_requests, limiter.limits_tokens) == (False, False)
    assert counted(limiter.request, ADA) == 20


@pytest.fixture
def settings(settings: ServerSettings) -> ServerSettings:
    return settings.model_copy(
        update={"user_requests_per_minute": 4, "key_tokens_per_minute": 5, "owner_documents": 1}
    )


def refusal(response: Any, code: str) -> dict[str, Any]:
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", code)
    assert int(response.headers["Retry-After"]) >= 1
    return error


async def test_a_user_who_asks_too_often_waits(ada: Someone, bob: Someone, app: FastAPI) -> None:
    for _ in range(4):
        assert (await ada.http.get("/documents")).status_code == 200
    assert "4 requests" in refusal(await ada.http.get("/documents"), "rate_limited")["message"]
    assert (await bob.http.get("/documents")).status_code == 200
    async with client_of(app) as anyone:
        assert (await anyone.get("/healthz")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_that_had_its_tokens_waits(ada: Someone, state: AppState, stream: bool) -> None:
    asked = {"model": "base", "prompt": "It opens at six and", "stream": stream}
    assert (await ada.http.post("/v1/completions", json=asked)).status_code == 200
    assert "tokens" in refusal(await ada.http.post("/v1/completions", json=asked), "rate_limited")["message"]


async def test_an_owner_who_has_enough_documents_is_told(ada: Someone, bob: Someone) -> None:
    document_id = await ada.upload()
    response = await ada.http.post("/documents", json={"title": "t", "text": "another"})
    assert "one owner may have 1" in refusal(response, "quota_exceeded")["message"]
    assert (await ada.http.delete(f"/documents/{document_id}")).status_code == 200
    await ada.upload()
    await bob.upload()
