"""Fixtures that tests of every package share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from km_registry.config import RegistrySettings
from km_registry.events import MemoryNotifier
from km_registry.registry import Registry
from km_registry.types import Principal
from server.redis_private import find_executable
from tests.postgres import PostgresServer, running

#: No settings file of whoever runs the tests: neither here nor in the processes that tests start.
os.environ["KM_CONFIG"] = os.devnull

# The same examples on every machine, however slow it is.
settings.register_profile(
    "same everywhere",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same everywhere")


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[Path]:
    """The unix socket of a real Redis that lives as long as the tests."""
    # Not below pytest's directories: a socket's path must stay under 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="km-redis-", dir="/tmp"))
    socket = directory / "s"
    options = {"port": "0", "unixsocket": socket, "unixsocketperm": "700", "save": "", "dir": directory}
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    with subprocess.Popen(
        [find_executable(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        log = []
        for line in process.stdout:
            log.append(line)
            if "ready to accept connections" in line.lower():
                break
        else:
            pytest.fail("Redis did not start:\n" + "".join(log))
        try:
            yield socket
        finally:
            process.terminate()
    shutil.rmtree(directory)


@pytest.fixture
def redis_server(redis_socket: Path) -> Iterator[Redis]:
    """A client of a real, empty Redis."""
    with Redis(unix_socket_path=str(redis_socket)) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL that lives as long as the tests."""
    with running() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> RegistrySettings:
    """Settings with a data directory of the test's own."""
    return RegistrySettings(data_dir=tmp_path / "data", database_url=None, redis_url=None)


@pytest.fixture
def notifier() -> MemoryNotifier:
    """The notifier of `registry`, which can also be followed."""
    return MemoryNotifier()


@pytest.fixture
def registry(settings: RegistrySettings, notifier: MemoryNotifier) -> Iterator[Registry]:
    """An empty registry on SQLite."""
    with Registry.open(settings, notifier) as opened:
        yield opened


@pytest.fixture
def owner(registry: Registry) -> Principal:
    """A user of `registry`."""
    user, _ = registry.create_user("Ada")
    return Principal(user.id)
