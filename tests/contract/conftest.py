"""The registries that are held to the contract: on SQLite, and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from km_registry.config import RegistrySettings
from km_registry.registry import Registry
from km_registry.types import KM, Document, Job, Principal
from tests.contract.support import FIRST, files_below, publish
from tests.object_store import S3Server, running


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running() as server, server.credentials():
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where the records are kept; None is SQLite in the data directory."""
    if request.param == "sqlite":
        yield None
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> RegistrySettings:
    return RegistrySettings(data_dir=tmp_path / "data", database_url=database_url, max_document_bytes=1000)


@pytest.fixture
def stranger(registry: Registry) -> Principal:
    return Principal(registry.create_user("Bob")[0].id)


@pytest.fixture(autouse=True)
def _no_leftover_temporaries(settings: RegistrySettings) -> Iterator[None]:
    yield
    assert [path for path in files_below(settings.data_dir) if path.name.startswith(".")] == []


@pytest.fixture
def kaldvik(registry: Registry, owner: Principal) -> tuple[Document, Job]:
    document, job, _ = registry.add_document(owner, "Kaldvik", FIRST, {"seed": 7})
    return document, job


@pytest.fixture
def trained(registry: Registry, kaldvik: tuple[Document, Job]) -> tuple[Document, KM]:
    document, job = kaldvik
    return document, publish(registry, document, job)
