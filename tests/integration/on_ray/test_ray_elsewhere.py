"""Replicas on a real Ray Serve that share the store with gateways and no file system; and replacing them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from km_registry.base_model import BaseModel
from km_registry.config import RegistrySettings
from km_registry.copies import Copies
from km_registry.errors import StoreUnavailableError
from km_registry.events import MemoryNotifier
from km_registry.process_directory import ProcessDirectory
from km_registry.registry import Registry
from km_registry.types import KE, KM, Principal
from server.composed_elsewhere import ComposedElsewhere
from server.engine.base import Adapter, Engine, EngineUnavailableError, GenerationRequest
from server.engine.ray_adapters import ReplicaAdapters
from server.engine.ray_cluster import Cluster
from server.engine.ray_copies import CopiedAdapters
from server.engine.ray_engine import RayEngine
from server.engine.ray_live import live_replicas
from server.engine.ray_rollout import found, roll_out
from server.kms import adapter_of
from tests.contract.engine_contract import until
from tests.integration.on_ray.slow_engine import long_reply, slow_engine
from tests.support import BASE_FINGERPRINT, away, trained, write_ke

QUESTION = tuple(map(ord, "When does it open?"))


def make(share: Path, place: Path, *, slots: int, max_model_len: int) -> tuple[Engine, ReplicaAdapters]:
    directory = ProcessDirectory(place, secrets.token_hex(4))
    copies = Copies(directory.path, f"file://{share}", 10**9)
    engine = slow_engine(slots=slots, max_model_len=max_model_len)
    return engine, CopiedAdapters(engine, directory, copies, composite_bytes=10**9, look_every_s=0.2)


@pytest.fixture(scope="module")
def share(folder: Path) -> Path:
    (folder / "share").mkdir()
    return folder / "share"


@pytest.fixture(scope="module")
def place(folder: Path) -> Path:
    """What a replica's machine keeps for itself."""
    return folder / "place"


@pytest.fixture(scope="module")
async def engine(pair: RayEngine, share: Path, place: Path) -> AsyncIterator[RayEngine]:
    """One replica of it, on the same Ray."""
    alone = {"app": "km-elsewhere", "replicas": 1, "max_replicas": 1, "settings": {"KM_MAX_LORAS": "2"}}
    config = replace(pair._config, **alone)
    engine = RayEngine(config, partial(make, share, place, slots=2, max_model_len=4096))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def registry(folder: Path, share: Path) -> Iterator[Registry]:
    """The gateway's."""
    settings = RegistrySettings(data_dir=folder / "gateway", database_url=None, store_url=f"file://{share}")
    with Registry.open(settings, MemoryNotifier()) as opened:
        yield opened


@pytest.fixture(scope="module")
def owner(registry: Registry) -> Principal:
    return Principal(registry.create_user("Ada")[0].id)


@pytest.fixture(scope="module")
def kms(registry: Registry, owner: Principal) -> list[KM]:
    return [trained(registry, owner, f"The harbour {number} opens at six.") for number in range(3)]


@pytest.fixture(scope="module")
def ke(registry: Registry, folder: Path) -> KE:
    return registry.kes.register(write_ke(folder / "ke"), BaseModel(folder, "test", BASE_FINGERPRINT))[0]


def files_of(km: KM, place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and km.id in str(path)]


def directories(place: Path) -> list[Path]:
    return list(place.iterdir())


def asked(adapter: Adapter | None, max_tokens: int = 60) -> GenerationRequest:
    return GenerationRequest(QUESTION, max_tokens, adapter=adapter)


async def test_a_replica_needs_the_store_alone(
    engine: RayEngine, kms: list[KM], ke: KE, place: Path, share: Path
) -> None:
    gateway = ComposedElsewhere(engine)
    async with gateway.plugged(kms[0], ke) as joined:
        assert joined is not None
        assert (await engine.generate(asked(joined))).text.startswith(joined.name)
    assert (await engine.generate(asked(adapter_of(kms[1])))).text.startswith(kms[1].id)
    with away(share):
        assert (await engine.generate(asked(joined))).text.startswith(joined.name)
        with pytest.raises(StoreUnavailableError):
            await engine.generate(asked(adapter_of(kms[2])))
    (evicted,) = await gateway.evict_kms([kms[0]])
    assert evicted.from_memory
    assert list(evicted.replicas) == live_replicas(engine._config.app)
    assert files_of(kms[0], place) == []


async def test_a_replica_that_a_deletion_did_not_reach_keeps_nothing(
    engine: RayEngine, registry: Registry, owner: Principal, kms: list[KM], ke: KE, place: Path
) -> None:
    async with ComposedElsewhere(engine).plugged(kms[1], ke) as joined:
        await engine.generate(asked(joined))
    held = (await engine.status()).adapters.in_memory
    assert files_of(kms[1], place)
    registry.tombstone(owner, kms[1].document_id)
    registry.purge(kms[1].document_id)
    await until(engine, lambda status: status.adapters.in_memory <= held - 1)
    async with asyncio.timeout(10):
        while files_of(kms[1], place):  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.02)


async def test_a_roll_out_refuses_nothing(engine: RayEngine, kms: list[KM], place: Path, share: Path) -> None:
    """While clients ask, the replica is replaced by two with other settings."""
    done = asyncio.Event()

    async def client(adapter: Adapter | None) -> int:
        request, count = asked(adapter), 0
        while not done.is_set():
            whole = long_reply(request)[:60]
            assert (await engine.generate(request)).text == whole
            async with aclosing(engine.stream(request)) as stream:
                assert "".join([delta.text async for delta in stream]) == whole
            count += 1
        return count

    clients = [
        asyncio.create_task(client(adapter))
        for adapter in (None, adapter_of(kms[0]), adapter_of(kms[0]), adapter_of(kms[2]))
    ]
    before = set(live_replicas(engine._config.app))
    config = replace(engine._config, replicas=2, max_replicas=2, settings={"KM_MAX_LORAS": "3"})
    cluster = Cluster(config, partial(make, share, place, slots=3, max_model_len=2048))
    there = await asyncio.to_thread(found, config, cluster)
    assert there is not None
    assert there.differing == ["KM_MAX_LORAS is 2 there, 3 here"]
    try:
        steps = await asyncio.to_thread(list, roll_out(config, cluster))
    finally:
        done.set()
        answered = await asyncio.gather(*clients)
    assert min(answered) > 0
    assert all(step.replicas.get("running") for step in steps)
    assert steps[-1].replicas == {"running": 2}
    assert {one.settings["KM_MAX_LORAS"] for one in (await engine.replicas()).values()} == {"3"}
    assert not before & set(live_replicas(engine._config.app))
    assert (await engine.status()).adapters.slots == 6
    assert engine.max_model_len == 2048
    assert len(directories(place)) == 2


async def test_what_does_not_fit_those_that_run_is_refused_or_told(engine: RayEngine) -> None:
    other = replace(engine._config, fingerprint="another")
    with pytest.raises(EngineUnavailableError, match="base model fingerprint, and this gateway another"):
        await asyncio.to_thread(next, roll_out(other, Cluster(other, slow_engine)))
    other = replace(engine._config, settings={"KM_STORE_URL": "s3://another"})
    with pytest.raises(EngineUnavailableError, match="KM_STORE_URL none, and this gateway has s3://another"):
        await RayEngine(other, slow_engine).start()
    other = replace(engine._config, settings={"KM_MAX_LORAS": "8"})
    with capture_logs() as logs:
        await RayEngine(other, slow_engine).start()
    (said,) = [entry["differing"] for entry in logs if "other settings" in entry["event"]]
    assert said == ["KM_MAX_LORAS is 3 there, 8 here"]
    assert (await engine.status()).adapters.slots == 6
