"""Settings that every process of the server shares. Each is an environment variable with prefix KM_."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "km-server"


class RegistrySettings(BaseSettings):
    """Where things are kept and which base model they are for."""

    model_config = SettingsConfigDict(env_prefix="KM_", extra="ignore", populate_by_name=True)

    data_dir: Path = Field(
        default_factory=_default_data_dir, description="everything written at run time goes here"
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; without one, SQLite in the data directory"
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("KM_REDIS_URL", "REDIS_URL"),
        description="Redis for the queue and events; without one the server starts a private one",
    )
    base_model: str = Field(
        "embedded",
        description="`embedded` (SmolLM2-135M-Instruct from its wheel), a local directory, or a hub id",
    )
    max_document_bytes: int = Field(2_000_000, ge=1, description="largest document taken, in bytes of UTF-8")
    lora_rank: int = Field(16, ge=1, le=256, description="rank of the KMs that are trained and served")

    @property
    def effective_database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir / 'registry.sqlite3'}"
