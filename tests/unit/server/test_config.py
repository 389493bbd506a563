"""Settings: defaults, environment, what is refused; and that reading them is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.config import ServerSettings

HEAVY = ("torch", "transformers", "vllm", "peft", "fastapi", "sqlalchemy", "safetensors")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("KM_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = ServerSettings()

    assert (settings.host, settings.port, settings.engine) == ("127.0.0.1", 8321, "vllm")
    assert settings.base_model == "embedded"
    assert settings.redis_url is None
    assert settings.generator_url is None


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KM_PORT", "0")
    monkeypatch.setenv("KM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", "redis://somewhere")

    settings = ServerSettings()

    assert (settings.port, settings.data_dir, settings.redis_url) == (0, tmp_path, "redis://somewhere")
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/registry.sqlite3"


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_PORT", "1")
    monkeypatch.setenv("REDIS_URL", "redis://somewhere")

    settings = ServerSettings(port=2, redis_url="redis://elsewhere")

    assert (settings.port, settings.redis_url) == (2, "redis://elsewhere")


def test_the_internal_key_is_secret_and_new_each_time() -> None:
    first, second = ServerSettings(), ServerSettings()

    assert first.internal_key != second.internal_key
    assert len(first.internal_key) >= 43
    assert first.internal_key not in repr(first)


@pytest.mark.parametrize(
    ("name", "value"), [("port", 65536), ("port", -1), ("max_loras", 0), ("kv_cache_gb", 0), ("engine", "x")]
)
def test_refuses(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        ServerSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module", ["km_registry.config", "server.config", "trainer_worker.config", "server.cli"]
)
def test_configuration_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
