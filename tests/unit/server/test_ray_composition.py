"""What of the settings a replica on Ray gets, and what gateways compare."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from km_registry.base_model import BaseModel
from km_registry.config import GeneratorEndpoint
from server.config import ServerSettings
from server.engine.base import EngineNotReachedError
from server.engine.ray_settings import differences
from server.ray_composition import joined, ray_config, replica_maker
from server.startup import ServeError, listen, url_of


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(data_dir=tmp_path, base_model=str(tmp_path), max_loras=4)


@pytest.fixture
def model(tmp_path: Path) -> BaseModel:
    return BaseModel(tmp_path, "test", "f" * 64)


def test_a_replica_gets_no_secret(settings: ServerSettings, model: BaseModel) -> None:
    fields = {"url": "http://host/v1", "model": "m", "key": "sk-hush", "api": "chat"}
    secret = {
        "session_key": "hushhush" * 2,
        "generator_key": "hush",
        "database_url": "postgresql://hush",
        "redis_url": "redis://:hush@host",
        "internal_key": "kmi_hush",
        "generators": {"big": GeneratorEndpoint.model_validate(fields)},
    }
    shared = {"store_url": "s3://bucket/km", "ray_engine": "scripted"}
    sent = pickle.dumps(replica_maker(settings.model_copy(update=secret | shared), model))
    assert b"hush" not in sent
    assert b"s3://bucket/km" in sent


def test_a_replica_has_a_data_directory_of_its_own(settings: ServerSettings, model: BaseModel) -> None:
    (told, _) = replica_maker(settings, model).args  # type: ignore[attr-defined]
    assert told.data_dir == settings.data_dir
    other = settings.model_copy(update={"ray_replica_data_dir": Path("/mnt/replica")})
    (told, _) = replica_maker(other, model).args  # type: ignore[attr-defined]
    assert told.data_dir == Path("/mnt/replica")


def test_differences_are_named(settings: ServerSettings, model: BaseModel) -> None:
    mine = ray_config(settings, model).settings
    assert differences(mine, mine) == []
    changed = settings.model_copy(update={"max_loras": 8, "ray_max_replicas": 3})
    theirs = dict(ray_config(changed, model).settings)
    del theirs["KM_DTYPE"]
    assert differences(mine, theirs) == [
        "KM_DTYPE is unknown there, auto here",
        "KM_MAX_LORAS is 8 there, 4 here",
        "KM_RAY_MAX_REPLICAS is 3 there, none here",
    ]


def test_no_ray_is_named(settings: ServerSettings) -> None:
    with pytest.raises(ServeError, match="KM_RAY_ADDRESS names no Ray"), joined(settings):
        pass


def test_no_ray_is_there(settings: ServerSettings, model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setattr("km_registry.base_model.resolve", lambda *_: model)
    monkeypatch.setattr("server.engine.ray_cluster._REACHED_S", 0.5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def said(given: str) -> str:
        wrong = settings.model_copy(update={"ray_address": given})
        with pytest.raises(EngineNotReachedError, match="KM_RAY_ADDRESS") as raised, joined(wrong):
            pass
        return str(raised.value)

    with listen("127.0.0.1", 0) as listener:
        address = url_of(listener).removeprefix("http://")
        assert f"what answers at {address} is no Ray" in said(address)
    assert f"nobody answers at {address}: Connection refused" in said(address)
    assert f"not reached at ray://{address}" in said(f"ray://{address}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"nobody answers at {address}" in said("auto")
