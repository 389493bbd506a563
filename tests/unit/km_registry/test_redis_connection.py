"""Which Redis a URL names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from km_registry.config import RegistrySettings
from km_registry.redis_address import sentinel_address
from km_registry.redis_connection import open_redis


def test_a_url_names_sentinels_their_master_and_a_database() -> None:
    found = sentinel_address(
        "rediss+sentinel://ada:p%40ss@one:1,two,[::1]:3/my%20master/4?sentinel_password=other"
    )
    assert found.hosts == [("one", 1), ("two", 26379), ("::1", 3)]
    assert found.master == "my master"
    assert found.connection == {"username": "ada", "password": "p@ss", "db": 4, "ssl": True}
    assert (found.sentinel["password"], found.sentinel["ssl"]) == ("other", True)
    assert "p@ss" not in repr(found)
    assert sentinel_address("redis+sentinel://one/m").connection == {"db": 0}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel:///m",
        "redis+sentinel://one",
        "redis+sentinel://:hidden@one/m/x",
        "redis+sentinel://:hidden@one:x/m",
        "redis+sentinel://:hidden@one/m?ssl=1",
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"Sentinel|option") as refused:
        RegistrySettings(data_dir=tmp_path, redis_url=url)
    assert "hidden" not in str(refused.value)


def test_any_other_url_is_a_server() -> None:
    with open_redis("redis://host:7/3") as redis:
        assert redis.connection_pool.connection_kwargs["host"] == "host"
        assert redis.connection_pool.connection_kwargs["db"] == 3
