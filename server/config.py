"""Settings of the server: each an option of `km serve`, a variable with prefix KM_, a line of a file."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from km_registry.base_model import EMBEDDED
from km_registry.config import RegistrySettings
from server.intake.limits import IntakeLimits
from server.modes import AutoKE, AutoPolicy, Mode


class ServerSettings(RegistrySettings):
    """How this server listens and how its engine runs."""

    file_strict: ClassVar[bool] = True

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8321, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    local_worker: bool = Field(
        True, description="train on this machine; off where `km worker` runs elsewhere on the same data"
    )

    engine: Literal["vllm", "ray", "scripted"] = Field(
        "vllm", description="`ray` puts replicas of the engine on Ray Serve; `scripted` is for tests"
    )
    ray_address: str | None = Field(
        None,
        description="address of a Ray cluster (`auto`, host:port), whose replicas several servers share; "
        "without one a Ray of this server's own is started on this machine",
    )
    ray_deploy: bool = Field(
        True,
        description="put the engine on that cluster when it is not there; off where KubeRay does that, "
        "which is then waited for",
    )
    ray_engine: Literal["vllm", "scripted"] = Field("vllm", description="what a replica on Ray is")
    ray_replicas: int = Field(1, ge=1, description="engine replicas on Ray, at least")
    ray_max_replicas: int | None = Field(
        None,
        ge=1,
        description="engine replicas on Ray, at most: as many as requests need; ray_replicas by itself",
    )
    ray_target_requests: float = Field(
        8.0, gt=0, description="requests at a time for which Ray keeps one replica"
    )
    ray_target_first_token_s: float | None = Field(
        None, gt=0, description="mean time to first tokens, in seconds, above which Ray adds a replica"
    )
    ray_replica_cpus: float = Field(1.0, gt=0, description="processors of a replica, as Ray counts them")
    ray_replica_gpus: float = Field(0.0, ge=0, description="GPUs of a replica, as Ray counts them")
    ray_replica_data_dir: Path | None = Field(
        None,
        description="data directory of a replica on its machine: the base model's files and, with store_url, "
        "its own copies; the server's path without one",
    )
    max_loras: int = Field(8, ge=1, description="KMs that one batch may mix")
    max_cpu_loras: int = Field(64, ge=1, description="KMs kept in memory")
    max_model_len: int = Field(4096, ge=256, description="longest prompt plus answer, in tokens")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="the engine's number format; auto is bfloat16 where the hardware computes in it"
    )
    compile: bool = Field(
        False,
        description="have the base model compiled on a CPU: minutes more at every start, a third more tokens "
        "per second; on a GPU it always is",
    )
    kv_cache_gb: float = Field(1.0, gt=0, description="memory for attention caches on CPU, in GiB")

    max_requests: int = Field(
        1024,
        ge=1,
        description="answers that users may wait for at a time; more are refused with 503 and Retry-After",
    )
    max_requests_per_user: int = Field(
        256, ge=1, description="answers that one user may wait for at a time; more are refused with 429"
    )
    request_timeout_s: float = Field(
        300.0, gt=0, description="longest time from a request to the end of its answer, in seconds"
    )
    engine_restarts: int = Field(
        3, ge=0, description="how often in 10 minutes an engine that died is started again"
    )

    max_question_chars: int = Field(20_000, ge=1, description="longest question, in characters")
    max_answer_tokens: int = Field(1024, ge=1, description="longest answer that may be asked for, in tokens")

    max_file_bytes: int = Field(
        20_000_000,
        ge=1,
        description="largest file taken, in bytes; its text is bounded by max_document_bytes",
    )
    max_import_bytes: int = Field(
        1_000_000_000,
        ge=0,
        description="largest KM with its text that may be imported, in bytes; 0 takes none",
    )
    max_pages: int = Field(2000, ge=1, description="most pages of a PDF")
    max_unpacked_bytes: int = Field(
        200_000_000, ge=1, description="most bytes that a DOCX may unpack to, the guard against zip bombs"
    )
    intake_memory_mb: int = Field(1024, ge=256, description="memory for reading one file, in MiB")
    intake_seconds: int = Field(60, ge=1, description="processor time for reading one file, in seconds")

    key_requests_per_minute: int | None = Field(None, ge=1, description="requests of one API key in a minute")
    user_requests_per_minute: int | None = Field(None, ge=1, description="requests of one user in a minute")
    key_tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens read and written for one API key in a minute"
    )
    user_tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens read and written for one user in a minute"
    )

    reconcile_seconds: float = Field(
        30.0, gt=0, description="seconds between two looks for what a crash or an outage interrupted"
    )
    audit_days: int = Field(
        365, ge=0, description="how long entries of the audit log are kept, in days; 0 keeps them for ever"
    )

    embedder: str = Field(
        EMBEDDED,
        description="`embedded` (all-MiniLM-L6-v2 from its wheel), a directory that sentence-transformers "
        "saved, a hub id, or `none` to serve without retrieval",
    )
    passage_tokens: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="longest passage, in tokens of the base model; 64 for the embedded one, else 256",
    )
    passages_per_answer: int | None = Field(
        None,
        ge=1,
        le=64,
        description="passages in the prompt when a question does not say; 2 for the embedded model, else 5",
    )
    auto_trained: Literal["km", "km+rag", "rag", "icl"] | None = Field(
        None,
        description="what mode auto is for a document whose KM is trained; km+rag for the embedded base "
        "model, else km",
    )
    auto_untrained: Literal["rag", "icl"] = Field(
        "rag", description="what mode auto is for a document whose KM is not trained"
    )
    auto_ke: AutoKE | None = Field(
        None,
        description="when mode auto has the default KE applied, if there is one: never, with_km or always; "
        "always, unless another setting measured better for the base model",
    )
    composite_cache_mb: int = Field(
        4096, ge=1, description="disk for composites of KMs and KEs, in MiB; those used last are kept"
    )
    compose_ahead: bool = Field(
        False,
        description="make a KM's composite with the default KE when the KM is published, not at its first "
        "question",
    )
    passage_cache_mb: int = Field(256, ge=1, description="memory for indexes of passages, in MiB")
    retrieval_patience_s: float = Field(
        20.0, gt=0, description="longest that a question waits for its document's passages, in seconds"
    )

    internal_key: str = Field(
        default_factory=lambda: "kmi_" + secrets.token_urlsafe(32),
        repr=False,
        description="key by which the worker asks this server for synthetic text; random for each start",
    )
    session_key: str | None = Field(
        None,
        min_length=16,
        repr=False,
        description="what signs the web page's sessions, for several servers behind one address; "
        "kept in the data directory without one",
    )
    generator_url: str | None = Field(
        None,
        description="OpenAI-compatible endpoint (…/v1) that writes synthetic text; without one, this server",
    )
    generator_key: str | None = Field(None, repr=False, description="API key for generator_url")

    @property
    def intake_limits(self) -> IntakeLimits:
        """What an uploaded file may cost."""
        return IntakeLimits(
            # A text file may be as large as a text.
            file_bytes=max(self.max_file_bytes, self.max_document_bytes),
            text_bytes=self.max_document_bytes,
            pages=self.max_pages,
            unpacked_bytes=self.max_unpacked_bytes,
            memory_bytes=self.intake_memory_mb * 2**20,
            seconds=self.intake_seconds,
        )

    @property
    def effective_passage_tokens(self) -> int:
        """The longest passage in force."""
        return self.passage_tokens or _shipped_with(self.base_model).passage_tokens

    @property
    def effective_passages_per_answer(self) -> int:
        """How many passages a question gets that does not say."""
        return self.passages_per_answer or _shipped_with(self.base_model).passages_per_answer

    @property
    def auto_policy(self) -> AutoPolicy:
        """What mode auto becomes."""
        trained = self.auto_trained or _shipped_with(self.base_model).auto_trained
        ke = self.auto_ke or _shipped_with(self.base_model).auto_ke
        return AutoPolicy(Mode(trained), Mode(self.auto_untrained), ke)


@dataclass(frozen=True, slots=True)
class _Shipped:
    """What measures best for a base model."""

    passage_tokens: int
    passages_per_answer: int
    auto_trained: str
    auto_ke: AutoKE = AutoKE.ALWAYS


#: A small model reads short contexts better: of 20 questions it got 12 right with its KM and two passages of
#: 64 tokens, 9 with one such passage alone, 6 with the whole document.
_EMBEDDED_MODEL = _Shipped(64, 2, "km+rag")
#: The paper's, for models from 3 B on: five passages of 256 tokens, and without a KE they do not help a KM
#: (closed book 27.3, with passages 26.4).
_OTHER_MODEL = _Shipped(256, 5, "km")


def _shipped_with(base_model: str) -> _Shipped:
    return _EMBEDDED_MODEL if base_model == EMBEDDED else _OTHER_MODEL
