"""The adapters of a replica that has KMs and KEs from the store, as gateways that share it use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from km_registry.adapter_files import WEIGHTS
from km_registry.base_model import BaseModel
from km_registry.compose import compose
from km_registry.copies import Copies
from km_registry.errors import StoreUnavailableError
from km_registry.process_directory import ProcessDirectory
from km_registry.registry import Registry
from km_registry.types import KE, KM, Principal
from server.composed_elsewhere import ComposedElsewhere
from server.config import ServerSettings
from server.engine import ray_copies
from server.engine.base import Adapter, AdapterGoneError, AdapterLoadError, GenerationRequest
from server.engine.ray_copies import CopiedAdapters
from server.engine.scripted import ScriptedEngine
from server.kms import adapter_of
from tests.support import BASE_FINGERPRINT, away, write_ke
from tests.unit.server.conftest import train

LARGE = 10**9


@pytest.fixture
def settings(settings: ServerSettings, share: Path) -> ServerSettings:
    return settings.model_copy(update={"store_url": f"file://{share}", "engine": "ray"})


@pytest.fixture
def km(registry: Registry, owner: Principal) -> KM:
    return _trained(registry, owner, "The harbour opens at six.")


def _trained(registry: Registry, owner: Principal, text: str) -> KM:
    return train(registry, registry.add_document(owner, "Harbour", text)[0].id, owner)


@pytest.fixture
def ke(registry: Registry, tmp_path: Path) -> KE:
    return registry.kes.register(write_ke(tmp_path / "ke"), BaseModel(tmp_path, "test", BASE_FINGERPRINT))[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the replica's machine keeps what is its own."""
    return tmp_path / "replicas"


@pytest.fixture
async def replica(engine: ScriptedEngine, place: Path, share: Path) -> AsyncIterator[CopiedAdapters]:
    directory = ProcessDirectory(place, "one")
    made = CopiedAdapters(
        engine, directory, Copies(directory.path, f"file://{share}", LARGE), composite_bytes=LARGE
    )
    yield made
    made.close()
    assert files_in(place) == []


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def named(engine: ScriptedEngine, km: KM | None, ke: KE | None) -> Adapter:
    """What a gateway calls the two."""
    async with ComposedElsewhere(engine).plugged(km, ke) as adapter:
        assert adapter is not None
        return adapter


async def ask(replica: CopiedAdapters, engine: ScriptedEngine, adapter: Adapter) -> Adapter:
    """Have it answer once, as a replica does; what the engine was given."""
    async with replica.using(adapter) as ours:
        await engine.generate(GenerationRequest((1,), 1, adapter=ours))
    return ours


async def deleted(replica: CopiedAdapters) -> list[str]:
    return [adapter.name async for adapter in replica.deleted()]


async def test_a_gateway_needs_no_files(engine: ScriptedEngine, km: KM, ke: KE) -> None:
    gateway = ComposedElsewhere(engine)
    async with gateway.plugged(None, None) as nothing, gateway.plugged(km, None) as alone:
        assert nothing is None
        assert alone == adapter_of(km)
    first, second = await named(engine, km, ke), await named(ScriptedEngine(None), km, ke)  # type: ignore[arg-type]
    assert first == second
    assert first.name != (await named(engine, None, ke)).name


async def test_a_km_and_its_composites_come_from_the_store_alone(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, ke: KE, place: Path, tmp_path: Path
) -> None:
    compose(Path(ke.path), tmp_path / "expected", km=Path(km.path))
    for adapter, expected in (
        (await named(engine, km, None), Path(km.path)),
        (await named(engine, km, ke), tmp_path / "expected"),
    ):
        ours = await ask(replica, engine, adapter)
        assert ours.path.is_relative_to(place)
        assert (ours.path / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
        assert replica.name_of(ours.name) == adapter.name
    alone = await ask(replica, engine, await named(engine, None, ke))
    assert alone.path.parent.name == "alone"


async def test_an_eviction_leaves_nothing_of_a_km(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, ke: KE, place: Path
) -> None:
    for one in (None, ke):
        await ask(replica, engine, await named(engine, km, one))
    adapter = adapter_of(km)
    await replica.retire(adapter)
    with pytest.raises(AdapterGoneError):
        await ask(replica, engine, adapter)
    evicted = await replica.evict(adapter)
    assert (evicted.name, evicted.from_memory, evicted.prefixes_forgotten) == (km.id, True, True)
    assert engine.resident == {}
    assert not [path for path in files_in(place) if km.id in str(path)]
    again = await replica.evict(adapter)
    assert not again.from_memory


async def test_an_eviction_leaves_nothing_of_a_ke(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, ke: KE, place: Path
) -> None:
    for one in (None, km):
        await ask(replica, engine, await named(engine, one, ke))
    plain = await ask(replica, engine, await named(engine, km, None))
    assert await replica.retire(adapter_of(ke)) == 0
    assert (await replica.evict(adapter_of(ke))).from_memory
    assert set(engine.resident) == {plain.name}
    assert not [path for path in files_in(place) if ke.id in str(path)]


async def test_a_deletion_that_did_not_reach_it_is_seen(
    replica: CopiedAdapters,
    engine: ScriptedEngine,
    registry: Registry,
    owner: Principal,
    km: KM,
    ke: KE,
    place: Path,
    share: Path,
) -> None:
    await ask(replica, engine, await named(engine, km, ke))
    assert await deleted(replica) == []
    with away(share):
        assert await deleted(replica) == []
    registry.tombstone(owner, km.document_id)
    registry.purge(km.document_id)
    assert await deleted(replica) == [km.id]
    await replica.evict(adapter_of(km))
    # Looked for until it is said to be forgotten: somebody may have fetched it meanwhile.
    assert await deleted(replica) == [km.id]
    replica.forgotten(adapter_of(km))
    assert await deleted(replica) == []
    assert not [path for path in files_in(place) if km.id in str(path)]
    with pytest.raises(AdapterLoadError, match="missing"):
        await ask(replica, engine, await named(engine, km, ke))


async def test_one_that_is_asked_is_not_taken_for_forgotten(
    replica: CopiedAdapters, engine: ScriptedEngine, registry: Registry, owner: Principal, km: KM
) -> None:
    adapter = await named(engine, km, None)
    async with replica.using(adapter):
        registry.tombstone(owner, km.document_id)
        registry.purge(km.document_id)
        replica.forgotten(adapter)
    assert await deleted(replica) == [km.id]


async def test_an_eviction_waits_for_who_is_fetching(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, place: Path
) -> None:
    engine.hold()
    answer = asyncio.create_task(ask(replica, engine, await named(engine, km, None)))
    await asyncio.sleep(0)  # it has begun, and fetches
    evicting = asyncio.create_task(replica.evict(adapter_of(km)))
    await engine.until_asked(1)
    assert not evicting.done()
    engine.release()
    await answer
    assert (await evicting).from_memory
    assert files_in(place) == []


async def test_while_the_store_is_away_what_is_here_is_answered(
    replica: CopiedAdapters, engine: ScriptedEngine, registry: Registry, owner: Principal, km: KM, share: Path
) -> None:
    other = _trained(registry, owner, "Another harbour.")
    await ask(replica, engine, await named(engine, km, None))
    with away(share):
        await ask(replica, engine, await named(engine, km, None))
        with pytest.raises(StoreUnavailableError):
            await ask(replica, engine, await named(engine, other, None))
    await ask(replica, engine, await named(engine, other, None))


async def test_a_damaged_object_is_a_broken_adapter(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, ke: KE, share: Path, place: Path
) -> None:
    stored = share / "documents" / km.document_id / "kms" / km.id / WEIGHTS
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    for one in (None, ke):
        with pytest.raises(AdapterLoadError, match="instead of"):
            await ask(replica, engine, await named(engine, km, one))
    assert not [path for path in files_in(place) if km.id in str(path)]
    stored.write_bytes(whole)
    await ask(replica, engine, await named(engine, km, ke))


async def test_a_copy_that_was_damaged_here_is_fetched_anew(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM
) -> None:
    adapter = await named(engine, km, None)
    copy = (await ask(replica, engine, adapter)).path
    (copy / WEIGHTS).write_bytes(b"spoiled")

    async def refused() -> None:
        async with replica.using(adapter):
            raise AdapterLoadError("as the engine says that looks at it")

    with pytest.raises(AdapterLoadError):
        await refused()
    assert not copy.exists()
    assert (await ask(replica, engine, adapter)).path == copy


async def test_those_asked_longest_ago_leave(
    replica: CopiedAdapters,
    engine: ScriptedEngine,
    registry: Registry,
    owner: Principal,
    km: KM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_copies, "MOST", 1)
    other = _trained(registry, owner, "Another harbour.")
    for one in (km, other):
        await ask(replica, engine, await named(engine, one, None))
    async with replica.using(await named(engine, km, None)):
        # It is in use again, so it is not the one that leaves.
        await ask(replica, engine, await named(engine, other, None))
        assert await deleted(replica) == []
        assert set(engine.resident) == {km.id, other.id}
    assert await deleted(replica) == []
    assert set(engine.resident) == {other.id}


async def test_a_disk_that_is_full_is_said(
    replica: CopiedAdapters, engine: ScriptedEngine, km: KM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.engine.base import EngineUnavailableError

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("km_registry.artifact_store.objects.Objects.download", full)
    with pytest.raises(EngineUnavailableError, match="No space left") as raised:
        await ask(replica, engine, await named(engine, km, None))
    assert not isinstance(raised.value, AdapterLoadError)
