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
async def pair(folder: Path) -> AsyncIterator[RayEngine]:
    """Two replicas of it."""
    config = RayConfig("fingerprint", SLOTS, folder / "ray", replicas=2, max_replicas=2, cpus=0.1)
    engine = RayEngine(config, MAKE)
    await engine.start()
    yield engine
    await engine.close()
