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


@pytest.fixture(autouse=True)
def _settings_stay_as_they_are() -> Iterator[None]:
    """What a test leaves in the environment would be a setting of every process that later tests start."""
    before = _settings_in_environment()
    yield
    assert _settings_in_environment() == before


def _settings_in_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("KM_")}


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


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """Directory of the embedded base model; KM_TEST_MODEL names another one."""
    if given := os.environ.get("KM_TEST_MODEL"):
        return Path(given)
    from km_registry.base_model import resolve

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "km-server" / "test-models"
    directory.mkdir(parents=True, exist_ok=True)
    return resolve("embedded", directory).path


@pytest.fixture
def settings(tmp_path: Path) -> RegistrySettings:
    """Settings with a data directory of the test's own."""
    return RegistrySettings(data_dir=tmp_path / "data", database_url=None, redis_url=None)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """The directory that machines mount."""
    directory = tmp_path / "share"
    directory.mkdir()
    return directory


@pytest.fixture
def notifier() -> MemoryNotifier:
    """The notifier of `registry`, which can also be followed."""
    return MemoryNotifier()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of the newest revision, to be copied: migrating takes longer than most tests."""
    settings = RegistrySettings(
        data_dir=tmp_path_factory.mktemp("migrated"), database_url=None, redis_url=None
    )
    with Registry.open(settings, MemoryNotifier()):
        pass
    return settings.data_dir / "registry.sqlite3"


@pytest.fixture
def registry(settings: RegistrySettings, notifier: MemoryNotifier, migrated: Path) -> Iterator[Registry]:
    """An empty registry on SQLite."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copy(migrated, settings.data_dir)
    with Registry.open(settings, notifier) as opened:
        yield opened


@pytest.fixture
def owner(registry: Registry) -> Principal:
    """A user of `registry`."""
    user, _ = registry.create_user("Ada")
    return Principal(user.id)
