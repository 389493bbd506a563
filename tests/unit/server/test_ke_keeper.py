"""KEs that come with the package: registered when they fit, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from km_registry.artifacts import WEIGHTS
from km_registry.base_model import BaseModel
from km_registry.registry import Registry
from server.ke_keeper import SHIPPED, register_shipped
from tests.support import BASE_FINGERPRINT, write_ke


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return BaseModel(tmp_path, "test", BASE_FINGERPRINT)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    (tmp_path / "shipped").mkdir()
    return tmp_path / "shipped"


def test_one_that_fits_becomes_the_default(registry: Registry, base: BaseModel, shipped: Path) -> None:
    write_ke(shipped / "answers")
    (ke,) = register_shipped(registry.kes, base, shipped)
    assert ke.is_default
    assert registry.kes.default_for(BASE_FINGERPRINT) == ke
    assert register_shipped(registry.kes, base, shipped) == []


def test_one_for_another_base_model_is_passed_over(
    registry: Registry, base: BaseModel, shipped: Path
) -> None:
    write_ke(shipped / "answers", base_fingerprint="0" * 64)
    assert register_shipped(registry.kes, base, shipped) == []


def test_without_any_there_is_nothing_to_do(registry: Registry, base: BaseModel, shipped: Path) -> None:
    assert register_shipped(registry.kes, base, shipped) == []
    assert register_shipped(registry.kes, base, shipped / "missing") == []
    assert SHIPPED.is_dir()


def test_one_that_was_deleted_does_not_come_back(registry: Registry, base: BaseModel, shipped: Path) -> None:
    write_ke(shipped / "answers")
    (ke,) = register_shipped(registry.kes, base, shipped)
    registry.kes.tombstone(ke.id)
    registry.kes.purge(ke.id)
    assert register_shipped(registry.kes, base, shipped) == []


def test_a_newer_one_takes_the_place_of_its_former(
    registry: Registry, base: BaseModel, shipped: Path, tmp_path: Path
) -> None:
    write_ke(shipped / "one")
    register_shipped(registry.kes, base, shipped)
    write_ke(shipped / "two", fill=0.75)
    (newer,) = register_shipped(registry.kes, base, shipped)
    assert (newer.version, newer.is_default) == (2, True)


def test_an_administrators_default_stays(
    registry: Registry, base: BaseModel, shipped: Path, tmp_path: Path
) -> None:
    own, _ = registry.kes.register(write_ke(tmp_path / "own", name="own", fill=0.75), base, make_default=True)
    write_ke(shipped / "answers")
    (ke,) = register_shipped(registry.kes, base, shipped)
    assert not ke.is_default
    assert registry.kes.default_for(BASE_FINGERPRINT) == own


def test_a_damaged_one_does_not_stop_the_server(registry: Registry, base: BaseModel, shipped: Path) -> None:
    directory = write_ke(shipped / "answers")
    (directory / WEIGHTS).write_bytes(b"")
    (shipped / "broken").mkdir()
    (shipped / "broken" / "manifest.json").write_text("{")
    with capture_logs() as logs:
        assert register_shipped(registry.kes, base, shipped) == []
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("a shipped KE is not registered", "answers"),
        ("a shipped KE is not registered", "broken"),
    ]
