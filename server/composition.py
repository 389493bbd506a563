"""The one place that chooses which engine, queue, application and worker a server is made of.

Heavy libraries are imported inside the functions: the supervisor calls them in threads, while the rest
of the start goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.retry import Retry

from km_registry.base_model import EMBEDDED, BaseModel
from km_registry.config import GeneratorEndpoint
from km_registry.errors import InstallationError, StoreUnavailableError
from km_registry.events import RedisNotifier
from km_registry.jobs import JobQueue, RqJobQueue
from km_registry.redis_connection import open_async_redis, open_redis
from km_registry.registry import Registry
from km_registry.store.layout import Layout
from km_registry.tracing import Tracing
from server.config import ServerSettings
from server.engine.base import Engine
from server.startup import ServeError
from server.tokenizer import Tokenizer
from server.worker_process import WorkerElsewhere, WorkerProcess

_log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from fastapi import FastAPI
    from limits.storage import Storage

    from server.retrieval.base import Embedder
    from server.state import AppState


@dataclass(frozen=True, slots=True)
class Records:
    """The registry, the queue of jobs, and the connections both use."""

    registry: Registry
    queue: JobQueue
    redis: Redis
    #: For what is asked in every request: it does not try again while a user waits.
    hasty_redis: Redis
    events: AsyncRedis
    #: The id of the data directory.
    home: str

    async def close(self) -> None:
        """Close every connection."""
        await self.events.aclose()
        self.registry.close()
        self.redis.close()
        self.hasty_redis.close()


def open_records(settings: ServerSettings, redis_url: str) -> Records:
    """Open the registry (its tables are made or migrated) and the queue. Blocking.

    ServeError when its database, its data directory and its store are not of one installation.
    """
    redis = open_redis(redis_url)
    registry = Registry.open(settings, RedisNotifier(redis))
    try:
        home = _of_one_installation(registry)
    except InstallationError as error:
        registry.close()
        redis.close()
        raise ServeError(str(error)) from error
    if removed := registry.recover():
        _log.info("removed what was left of uploads that were cut short", count=removed)
    return Records(
        registry,
        RqJobQueue(redis, registry),
        redis,
        open_redis(redis_url, retry=Retry(NoBackoff(), 0)),
        open_async_redis(redis_url),
        home,
    )


def _of_one_installation(registry: Registry) -> str:
    home = registry.installation.take_home()
    try:
        registry.installation.check_store()
    except StoreUnavailableError as error:
        # Copies are answered from meanwhile; a keeper asks again.
        _log.warning("the store is away; whose it is will be looked at later", reason=str(error))
    return home


def preload(settings: ServerSettings) -> None:
    """Import what takes seconds to import. Blocking."""
    import transformers  # noqa: F401

    if settings.engine == "vllm":
        import server.engine.vllm_engine
    import server.app  # noqa: F401


def load_tokenizer(model: BaseModel) -> Tokenizer:
    """The base model's tokenizer. Blocking."""
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model.path)
    return tokenizer


def make_engine(
    settings: ServerSettings, model: BaseModel, tokenizer: Tokenizer, *, composites: Path | None = None
) -> Engine:
    """The engine that the settings name, not started yet. ServeError when it is not installed.

    `composites` is where composites lie, if not in the data directory.
    """
    if settings.engine == "ray":
        from server.ray_composition import make_ray_engine

        return make_ray_engine(settings, model)
    if settings.engine == "scripted":
        from server.engine.scripted import ScriptedEngine

        return ScriptedEngine(tokenizer, max_model_len=settings.max_model_len)
    from server.engine.adapter_files import verifier
    from server.engine.vllm_engine import EngineConfig, VllmEngine

    # Composites have both ranks, and slots are as wide as the widest adapter.
    max_rank = settings.lora_rank + settings.ke_rank
    return VllmEngine(
        EngineConfig(
            model=model.path,
            max_model_len=settings.max_model_len,
            max_loras=settings.max_loras,
            max_cpu_loras=settings.max_cpu_loras,
            max_lora_rank=max_rank,
            kv_cache_bytes=int(settings.kv_cache_gb * 2**30),
            dtype=settings.dtype,
            cache_dir=settings.data_dir / "compiled",
            compile=settings.compile,
        ),
        verifier(
            composites or Layout.of(settings).composites,
            base_fingerprint=model.fingerprint,
            max_rank=max_rank,
        ),
    )


def make_state(
    settings: ServerSettings,
    records: Records,
    model: BaseModel,
    engine: Engine,
    tokenizer: Tokenizer,
    tracing: Tracing,
) -> AppState:
    """What the HTTP application serves from. The KEs that come with the package are registered."""
    from server.ke_keeper import register_shipped
    from server.state import AppState

    register_shipped(records.registry.kes, model)

    return AppState(
        settings=settings,
        registry=records.registry,
        queue=records.queue,
        redis=records.events,
        engine=engine,
        tokenizer=tokenizer,
        base_model=model,
        load_embedder=_embedder_loader(settings),
        limit_storage=_limit_storage(records.hasty_redis),
        clock_redis=records.redis if settings.redis_url else None,
        tracing=tracing,
    )


def _limit_storage(redis: Redis) -> Storage:
    from limits.storage import RedisStorage

    # The address is that of the pool: it may be a socket, which this library's URLs cannot all say.
    return RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix="km:limits")


def _embedder_loader(settings: ServerSettings) -> Callable[[], Embedder] | None:
    if settings.embedder == "none":
        return None

    def load() -> Embedder:
        # A second to import that the first document need not wait for.
        import langchain_text_splitters  # noqa: F401

        from server.retrieval.sentence_embedder import SentenceEmbedder

        return SentenceEmbedder.load(settings.embedder)

    return load


def make_app(state: AppState) -> FastAPI:
    """The HTTP application."""
    from server.app import create_app

    return create_app(state)


def worker_command() -> Sequence[str]:
    """How a worker is started. A process of its own: the server imports nothing of the trainer."""
    return (sys.executable, "-m", "trainer_worker")


def make_worker(
    settings: ServerSettings, *, redis_url: str, server_url: str, model: BaseModel
) -> WorkerProcess:
    """The worker of this server, not started yet."""
    if not settings.local_worker:
        return WorkerElsewhere()
    environment = worker_environment(settings, redis_url=redis_url, server_url=server_url, model=model)
    return WorkerProcess(worker_command(), environment, settings.data_dir / "logs" / "worker.log")


def worker_environment(
    settings: ServerSettings, *, redis_url: str, server_url: str, model: BaseModel
) -> dict[str, str]:
    """What a worker must know of this server."""
    embedded = settings.base_model == EMBEDDED
    own = settings.generator_url is None
    return {
        "KM_DATA_DIR": str(settings.data_dir),
        "KM_DATABASE_URL": settings.effective_database_url,
        "KM_STORE_URL": settings.store_url or "",
        "KM_STORE_CACHE_GB": str(settings.store_cache_gb),
        "REDIS_URL": redis_url,
        "KM_REDIS_URL": redis_url,
        "KM_GENERATOR_URL": f"{server_url}/v1" if own else str(settings.generator_url),
        "KM_GENERATOR_KEY": settings.internal_key if own else settings.generator_key or "",
        # The path that this server uses: a hub id could mean newer weights a moment later.
        "KM_BASE_MODEL": EMBEDDED if embedded else str(model.path),
        "KM_GENERATORS": _as_json(settings.generators),
        "KM_LORA_RANK": str(settings.lora_rank),
        "KM_LEASE_SECONDS": str(settings.lease_seconds),
        "KM_TRAIN_CONCURRENCY": str(settings.train_concurrency),
        "KM_CRASH_RETRIES": str(settings.crash_retries),
        "KM_RETRIES": str(settings.retries),
        "KM_RETRY_SECONDS": str(settings.retry_seconds),
        "KM_MAX_DOCUMENT_BYTES": str(settings.max_document_bytes),
        "KM_OTLP_ENDPOINT": settings.otlp_endpoint or "",
        "PYTHONUNBUFFERED": "1",
    }


def _as_json(generators: Mapping[str, GeneratorEndpoint]) -> str:
    """As KM_GENERATORS takes them, keys in clear: for the environment of a process of ours only."""
    return json.dumps(
        {name: {**one.model_dump(), "key": one.key.get_secret_value()} for name, one in generators.items()}
    )
