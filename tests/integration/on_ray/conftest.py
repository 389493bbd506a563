"""One Ray for all tests of replicas: it takes seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from server.engine.ray_adapters import with_shared_files
from server.engine.ray_engine import RayEngine
from server.engine.ray_settings import RayConfig
from tests.integration.on_ray.slow_engine import SLOTS, slow_engine

MAKE = partial(with_shared_files, partial(slow_engine, slots=SLOTS))


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="package")
def settings(folder: Path, embedded_model: Path) -> dict[str, str]:
    """What a node of Ray is told on which the application is built by its path."""
    (folder / "data").mkdir()
    (folder / "data" / "models").symlink_to(embedded_model.parent, target_is_directory=True)
    return {"KM_DATA_DIR": str(folder / "data"), "KM_RAY_ENGINE": "scripted", "KM_RAY_REPLICA_CPUS": "0.1"}


@pytest.fixture(scope="package")
async def pair(folder: Path, settings: dict[str, str]) -> AsyncIterator[RayEngine]:
    """Two replicas of it."""
    config = RayConfig("fingerprint", SLOTS, folder / "ray", replicas=2, max_replicas=2, cpus=0.1)
    engine = RayEngine(config, MAKE)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        await engine.start()
    yield engine
    await engine.close()
