"""Settings of the server. Each is an environment variable with prefix KM_ and an option of `km serve`."""

from __future__ import annotations

import secrets
from typing import Literal

from pydantic import Field

from km_registry.config import RegistrySettings


class ServerSettings(RegistrySettings):
    """How this server listens and how its engine runs."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8321, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    engine: Literal["vllm", "scripted"] = Field("vllm", description="`scripted` is for tests")
    max_loras: int = Field(8, ge=1, description="KMs that one batch may mix")
    max_cpu_loras: int = Field(64, ge=1, description="KMs kept in memory")
    max_model_len: int = Field(4096, ge=256, description="longest prompt plus answer, in tokens")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="the engine's number format; auto is bfloat16 where the hardware computes in it"
    )
    kv_cache_gb: float = Field(1.0, gt=0, description="memory for attention caches on CPU, in GiB")

    max_question_chars: int = Field(20_000, ge=1, description="longest question, in characters")
    max_answer_tokens: int = Field(1024, ge=1, description="longest answer that may be asked for, in tokens")

    internal_key: str = Field(
        default_factory=lambda: "kmi_" + secrets.token_urlsafe(32),
        repr=False,
        description="key by which the worker asks this server for synthetic text; random for each start",
    )
    generator_url: str | None = Field(
        None,
        description="OpenAI-compatible endpoint (…/v1) that writes synthetic text; without one, this server",
    )
    generator_key: str | None = Field(None, repr=False, description="API key for generator_url")
