"""Settings and where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from km_registry.config import RegistrySettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KM_LORA_RANK", "8")
    monkeypatch.setenv("REDIS_URL", "redis://there")
    settings = RegistrySettings()
    assert (settings.data_dir, settings.lora_rank, settings.redis_url) == (tmp_path, 8, "redis://there")


def test_without_a_database_there_is_sqlite_in_the_data_directory(tmp_path: Path) -> None:
    settings = RegistrySettings(data_dir=tmp_path, database_url=None)
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/registry.sqlite3"
    named = RegistrySettings(data_dir=tmp_path, database_url="postgresql+psycopg://db")
    assert named.effective_database_url == "postgresql+psycopg://db"


def test_limits_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="max_document_bytes"):
        RegistrySettings(data_dir=tmp_path, max_document_bytes=0)
