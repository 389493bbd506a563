"""What an engine on Ray is made of: in the gateways' processes, and in those of its replicas."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from km_registry import base_model
from km_registry.base_model import BaseModel
from km_registry.copies import Copies
from km_registry.process_directory import ProcessDirectory
from km_registry.setting_origins import variable_of
from server.config import ServerSettings
from server.engine.base import Engine, EngineUnavailableError
from server.engine.ray_adapters import MakeReplica, ReplicaAdapters, with_shared_files
from server.engine.ray_copies import CopiedAdapters
from server.startup import ServeError

if TYPE_CHECKING:
    from server.engine.ray_cluster import Cluster
    from server.engine.ray_settings import RayConfig

#: Below the data directory of a replica's machine, the directories of the replicas that run there.
REPLICAS = "replicas"
#: What lets one in anywhere, or signs, is none of a replica's business.
_SECRETS = ("session_key", "generator_key", "database_url", "redis_url")
#: The settings by which replicas differ, beside the base model, which is told by its content.
SHAPING = (
    "ray_engine",
    "ray_replicas",
    "ray_max_replicas",
    "ray_target_requests",
    "ray_target_first_token_s",
    "ray_replica_cpus",
    "ray_replica_gpus",
    "ray_replica_data_dir",
    "max_loras",
    "max_cpu_loras",
    "max_model_len",
    "dtype",
    "compile",
    "kv_cache_gb",
    "lora_rank",
    "ke_rank",
    "store_url",
    "store_cache_gb",
    "composite_cache_mb",
)


def make_ray_engine(settings: ServerSettings, model: BaseModel) -> Engine:
    """The engine of a gateway, not started yet. ServeError when Ray is not installed."""
    _require_ray()
    from server.engine.ray_engine import RayEngine

    return RayEngine(ray_config(settings, model), replica_maker(settings, model))


@contextmanager
def joined(settings: ServerSettings, *, surge: bool = True) -> Iterator[tuple[RayConfig, Cluster]]:
    """A connection to the Ray that gateways share, for an operator.

    ServeError when Ray is not installed, or none is named; EngineNotReachedError.
    """
    _require_ray()
    if settings.ray_address is None:
        raise ServeError(
            "KM_RAY_ADDRESS names no Ray. A server that has one of its own brings its settings to it when "
            "it is started again."
        )
    from server.engine.ray_cluster import Cluster

    model = base_model.resolve(settings.base_model, settings.data_dir)
    config = ray_config(settings, model, surge=surge)
    cluster = Cluster(config, replica_maker(settings, model))
    cluster.connect()
    try:
        yield config, cluster
    finally:
        cluster.leave()


def ray_config(settings: ServerSettings, model: BaseModel, *, surge: bool = True) -> RayConfig:
    """What the settings say of Ray."""
    from server.engine.ray_settings import RayConfig

    return RayConfig(
        fingerprint=model.fingerprint,
        slots=settings.max_loras,
        directory=settings.data_dir / "ray",
        address=settings.ray_address,
        replicas=settings.ray_replicas,
        max_replicas=settings.ray_max_replicas or settings.ray_replicas,
        cpus=settings.ray_replica_cpus,
        gpus=settings.ray_replica_gpus,
        target_requests=settings.ray_target_requests,
        target_first_token_s=settings.ray_target_first_token_s,
        deploys=settings.ray_deploy or settings.ray_address is None,
        settings=_told(settings),
        surge=surge,
    )


def make_replica(settings: ServerSettings, fingerprint: str) -> tuple[Engine, ReplicaAdapters]:
    """What a replica is, in its process. Blocking.

    EngineUnavailableError when this machine's base model is another one than the gateway's.
    """
    from server.composition import load_tokenizer, make_engine

    model = base_model.resolve(settings.base_model, settings.data_dir)
    if model.fingerprint != fingerprint:
        raise EngineUnavailableError(
            f"the base model {settings.base_model} on this machine is {model.fingerprint}, and the gateway's "
            f"{fingerprint}: bring the same files to both"
        )
    if settings.store_url is None:
        return with_shared_files(partial(make_engine, settings, model, load_tokenizer(model)))
    directory = ProcessDirectory(settings.data_dir / REPLICAS, secrets.token_hex(8))
    copies = Copies(directory.path, settings.store_url, int(settings.store_cache_gb * 2**30))
    engine = make_engine(settings, model, load_tokenizer(model), composites=copies.composites)
    composite_bytes = settings.composite_cache_mb * 2**20
    return engine, CopiedAdapters(engine, directory, copies, composite_bytes=composite_bytes)


def replica_maker(settings: ServerSettings, model: BaseModel) -> MakeReplica:
    """What makes a replica; it is pickled."""
    changed: dict[str, Any] = {"engine": settings.ray_engine, "internal_key": "", "generators": {}}
    if settings.ray_replica_data_dir is not None:
        changed["data_dir"] = settings.ray_replica_data_dir
    sent = settings.model_copy(update=changed | dict.fromkeys(_SECRETS))
    return partial(make_replica, sent, model.fingerprint)


def _told(settings: ServerSettings) -> dict[str, str]:
    fields = ServerSettings.model_fields
    values = {name: getattr(settings, name) for name in SHAPING}
    values["ray_replica_data_dir"] = settings.ray_replica_data_dir or settings.data_dir
    return {"km-server": version("km-server")} | {
        variable_of(name, fields[name]): "none" if value is None else str(value)
        for name, value in values.items()
    }


def _require_ray() -> None:
    try:
        import ray.serve  # noqa: F401
    except ModuleNotFoundError as error:
        raise ServeError(
            f"Ray is not installed ({error.name}). Install it (pip install 'km-server[ray]'), or leave "
            "KM_ENGINE at vllm."
        ) from error
