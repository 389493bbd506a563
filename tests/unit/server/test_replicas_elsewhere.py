"""A gateway whose engine's replicas have KMs and KEs from the store themselves."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from km_registry.adapter_files import WEIGHTS
from km_registry.base_model import BaseModel
from km_registry.copies import Copies
from km_registry.process_directory import ProcessDirectory
from km_registry.registry import Registry
from server.config import ServerSettings
from server.engine.base import Adapter, Delta, Eviction, Generation, GenerationRequest
from server.engine.ray_copies import CopiedAdapters
from server.engine.scripted import ScriptedEngine
from tests.support import BASE_FINGERPRINT, away, write_ke
from tests.unit.server.conftest import Someone, WordTokenizer, error_of, train


class OneReplica(ScriptedEngine):
    """A replica without Ray around it. Its engine is another one, which is asked as Serve asks it."""

    def __init__(self, tokenizer: WordTokenizer, place: Path, share: Path) -> None:
        super().__init__(tokenizer, max_model_len=200)
        self.inner = ScriptedEngine(tokenizer, max_model_len=200)
        directory = ProcessDirectory(place, "one")
        copies = Copies(directory.path, f"file://{share}", 10**9)
        self.adapters = CopiedAdapters(self.inner, directory, copies, composite_bytes=10**9)

    async def generate(self, request: GenerationRequest) -> Generation:
        if request.adapter is None:
            return await self.inner.generate(request)
        async with self.adapters.using(request.adapter) as ours:
            return await self.inner.generate(replace(request, adapter=ours))

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        assert request.adapter is not None
        async with (
            self.adapters.using(request.adapter) as ours,
            aclosing(self.inner.stream(replace(request, adapter=ours))) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def prefetch(self, adapter: Adapter) -> bool:
        async with self.adapters.using(adapter) as ours:
            return await self.inner.prefetch(ours)

    async def retire(self, adapter: Adapter) -> int:
        return await self.adapters.retire(adapter)

    async def evict(self, adapter: Adapter) -> Eviction:
        return replace(await self.adapters.evict(adapter), replicas=("one",))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "replicas"


@pytest.fixture
def settings(settings: ServerSettings, share: Path) -> ServerSettings:
    return settings.model_copy(update={"store_url": f"file://{share}", "engine": "ray"})


@pytest.fixture
def engine(tokenizer: WordTokenizer, place: Path, share: Path) -> Iterator[OneReplica]:
    replica = OneReplica(tokenizer, place, share)
    yield replica
    replica.adapters.close()


@pytest.fixture
async def document_id(ada: Someone, registry: Registry, settings: ServerSettings, tmp_path: Path) -> str:
    """Of a document with a KM, of which nothing lies on the gateway's machine; and there is a KE."""
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    base = BaseModel(tmp_path, "test", BASE_FINGERPRINT)
    registry.kes.register(write_ke(tmp_path / "ke"), base, make_default=True)
    for copy in (settings.data_dir / "cache").glob("k?s/k?_*"):
        shutil.rmtree(copy)
    return document_id


def files_in(*directories: Path) -> list[Path]:
    return [path for directory in directories for path in directory.rglob("*") if path.is_file()]


def of_adapters(settings: ServerSettings) -> list[Path]:
    """Files of KMs, KEs and composites on the gateway's machine."""
    cache = settings.data_dir / "cache"
    return files_in(cache / "kms", cache / "kes", settings.data_dir / "composites")


@pytest.mark.parametrize("ke", ["none", "default"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_gateway_fetches_and_composes_nothing(
    ada: Someone, document_id: str, settings: ServerSettings, ke: str, stream: bool
) -> None:
    response = await ada.ask(document_id, ke=ke, stream=stream)
    assert response.status_code == 200
    assert "prompt format" not in response.text
    assert of_adapters(settings) == []


async def test_a_deletion_leaves_nothing_with_the_replica(
    ada: Someone, document_id: str, engine: OneReplica, place: Path, share: Path
) -> None:
    for ke in ("none", "default"):
        assert (await ada.ask(document_id, ke=ke)).status_code == 200
    assert len(engine.inner.resident) == 2
    deleted = await ada.http.delete(f"/documents/{document_id}")
    purged = deleted.json()["purged"]
    assert (purged["engine_adapters"], purged["engine_replicas"]) == (1, ["one"])
    assert engine.inner.resident == {}
    # The KE is another matter.
    assert {path.parent.parent.name for path in files_in(place)} == {"kes"}
    assert not files_in(share / "documents")


async def test_a_ke_that_is_deleted_leaves_nothing_with_the_replica(
    ada: Someone, admin: Someone, document_id: str, registry: Registry, engine: OneReplica, place: Path
) -> None:
    assert (await ada.ask(document_id, ke="default")).status_code == 200
    (ke,) = registry.kes.all()
    assert (await admin.http.delete(f"/kes/{ke.id}")).status_code == 200
    assert engine.inner.resident == {}
    assert {path.parent.parent.name for path in files_in(place)} == {"kms"}


async def test_what_a_replica_cannot_have_is_refused(ada: Someone, document_id: str, share: Path) -> None:
    with away(share):
        assert error_of(await ada.ask(document_id), 503)["code"] == "store_unavailable"
    for weights in files_in(share / "documents"):
        if weights.name == WEIGHTS:
            weights.write_bytes(b"spoiled")
    assert error_of(await ada.ask(document_id), 500)["code"] == "artifact_damaged"
