"""Settings that every process of the server shares: environment variables with prefix KM_, or a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from km_registry.redis_address import is_sentinel, sentinel_address
from km_registry.settings_file import FileSource

_STORES = ("s3", "gs", "az", "file")

GeneratorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "km-server"


def _address(url: str, *, like: str, otherwise: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"give an address that begins with http:// or https://, like {like}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"it holds a user name or password; {otherwise}")
    return url.rstrip("/")


def _store_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _STORES:
        raise ValueError(f"give an address that begins with {', '.join(f'{one}://' for one in _STORES)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user name or password; give them by the provider's own variables")
    if parts.scheme == "file":
        if parts.netloc or not Path(parts.path).is_absolute():
            raise ValueError("give a directory by its whole path, like file:///mnt/km")
    elif not parts.netloc:
        raise ValueError("it names no bucket; give one, like s3://bucket/prefix")
    if parts.query or parts.fragment:
        raise ValueError("it holds ? or #; give a bucket and a prefix only")
    return url.rstrip("/")


class GeneratorEndpoint(BaseModel):
    """A model that writes synthetic text, behind an OpenAI-compatible endpoint. Only the operator names one:
    an upload that could name a URL would have the server call whatever its sender likes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    url: str = Field(description="the endpoint, …/v1")
    model: str = Field(min_length=1, description="model to ask for there")
    key: SecretStr = Field(SecretStr(""), description="API key; `get_secret_value()` for the header alone")
    api: Literal["completions", "chat"] = Field(
        "completions", description="/completions or /chat/completions"
    )
    timeout: float = Field(300.0, gt=0, description="seconds to wait for one batch of text")

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        otherwise = "give a secret as `key`, which is never shown"
        return _address(url, like="http://host:8000/v1", otherwise=otherwise)


class RegistrySettings(BaseSettings):
    """Where things are kept and which base model they are for."""

    model_config = SettingsConfigDict(
        env_prefix="KM_",
        extra="ignore",
        populate_by_name=True,
        # What is wrong may be a secret, and the message ends up in a log.
        hide_input_in_errors=True,
    )

    #: The table of the settings file that is this program's own, and whether it owns the top as well.
    file_section: ClassVar[str | None] = None
    file_strict: ClassVar[bool] = False

    data_dir: Path = Field(
        default_factory=_default_data_dir, description="everything written at run time goes here"
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; without one, SQLite in the data directory"
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("KM_REDIS_URL", "REDIS_URL"),
        description="Redis for the queue and events, redis://… or "
        "redis+sentinel://host1:26379,host2:26379/master/0; without one the server starts a private one",
    )
    store_url: str | None = Field(
        None,
        description="object store for texts, KMs, KEs and passages, for several machines: "
        "s3://bucket/prefix, gs://…, az://account/container/prefix, or file:///a/mounted/directory; "
        "credentials and endpoints by the provider's own variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …); "
        "without one, the data directory",
    )
    store_cache_gb: float = Field(
        20.0,
        gt=0,
        description="disk for copies of what is in the object store, in GiB; those used last are kept",
    )
    base_model: str = Field(
        "embedded",
        description="`embedded` (SmolLM2-135M-Instruct from its wheel), a local directory, or a hub id",
    )
    max_document_bytes: int = Field(2_000_000, ge=1, description="largest document taken, in bytes of UTF-8")
    owner_documents: int | None = Field(None, ge=1, description="most documents of one owner")
    owner_bytes: int | None = Field(
        None, ge=1, description="most bytes that the documents of one owner have together"
    )
    owner_trainings: int | None = Field(
        None, ge=1, description="most trainings of one owner that wait or run at a time"
    )
    lora_rank: int = Field(16, ge=1, le=256, description="rank of the KMs that are trained and served")
    ke_rank: int = Field(
        16, ge=0, le=256, description="highest rank of the KEs that are served; 0 serves none"
    )
    lease_seconds: float = Field(
        60.0,
        ge=2,
        description="silence of a training's process, in seconds, after which another takes the training up",
    )
    train_concurrency: int = Field(
        4, ge=1, le=64, description="most documents that a worker trains together, if memory allows"
    )
    crash_retries: int = Field(
        2, ge=0, description="times a training is taken up again whose process ended without a word"
    )
    retries: int = Field(
        3, ge=0, description="times a training is tried again that failed for a reason which may pass"
    )
    retry_seconds: float = Field(
        30.0, ge=0, description="wait before the first of these tries, in seconds; it doubles each time"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="OpenTelemetry collector that takes OTLP over HTTP, like http://collector:4318; without "
        "one nothing is traced",
    )
    generators: Annotated[dict[GeneratorName, GeneratorEndpoint], NoDecode] = Field(
        default_factory=dict,
        description="models beside the base model that a recipe may have write its synthetic text, as JSON: "
        '{"name": {"url": "http://host:8000/v1", "model": "…", "key": "…", "api": "chat", "timeout": 300}}',
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the library names them
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, then the environment, then the settings file."""
        return init_settings, env_settings, FileSource(settings_cls)

    @field_validator("generators", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value.strip() else {}
        except ValueError:
            # Not the reason: it could quote a key.
            raise ValueError("it is not valid JSON; quote it as one shell word") from None

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        if url and is_sentinel(url):
            sentinel_address(url)
        return url

    @field_validator("store_url")
    @classmethod
    def _object_store(cls, url: str | None) -> str | None:
        return _store_url(url) if url else None

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector(cls, url: str | None) -> str | None:
        if not url:
            return None
        return _address(url, like="http://collector:4318", otherwise="give it by OTEL_EXPORTER_OTLP_HEADERS")

    @property
    def effective_database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir / 'registry.sqlite3'}"
