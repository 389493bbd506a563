"""Composites at serving: one build, one engine id, a bound on disk, and nothing removed under an answer."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from km_registry.adapter_files import WEIGHTS
from km_registry.artifacts import write_manifest
from km_registry.composites import forget_kms
from km_registry.errors import ArtifactError
from km_registry.types import KE, KM
from server.composites import FIRST_ENGINE_ID, Composites
from server.engine.base import Adapter, AdapterLoadError, GenerationRequest
from server.engine.scripted import ScriptedEngine
from server.kms import adapter_of
from server.metrics import Metrics
from tests.support import BASE_FINGERPRINT, write_adapter, write_ke
from tests.unit.server.conftest import WordTokenizer

NOW = datetime.now(UTC)
LARGE = 10**9


@pytest.fixture
def km(tmp_path: Path) -> KM:
    path = write_adapter(tmp_path / "kms" / "km_1")
    described = {"document_id": "doc_1", "document_sha256": "d" * 64, "rank": 4}
    write_manifest(path, described | {"base_fingerprint": BASE_FINGERPRINT})
    return KM("km_1", 1, "doc_1", "job_1", 1, "a" * 64, str(path), BASE_FINGERPRINT, NOW)


@pytest.fixture
def ke(tmp_path: Path) -> KE:
    path = write_ke(tmp_path / "kes" / "ke_1")
    return KE(
        "ke_1", "answers", 1, "e" * 64, str(path), "test", BASE_FINGERPRINT, 4, "chat-v1", "km+ke", False, NOW
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "composites").mkdir()
    return tmp_path / "composites"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(WordTokenizer())


@pytest.fixture
def composites(root: Path, engine: ScriptedEngine) -> Composites:
    return Composites(root, engine, LARGE, Metrics())


def other(km: KM, number: int) -> KM:
    return replace(km, id=f"km_{number}", engine_id=number)


async def use(composites: Composites, engine: ScriptedEngine, ke: KE, km: KM | None) -> Adapter:
    """Have it answer once, as an answer does."""
    async with composites.using(ke, km) as adapter:
        await engine.generate(GenerationRequest((1,), 1, adapter=adapter))
    return adapter


def on_disk(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob(f"*/*/{WEIGHTS}")}


async def test_what_is_plugged_in(composites: Composites, km: KM, ke: KE) -> None:
    async with composites.plugged(None, None) as nothing, composites.plugged(km, None) as km_only:
        assert nothing is None
        assert km_only == adapter_of(km)
    async with composites.plugged(None, ke) as alone, composites.plugged(km, ke) as both:
        assert alone
        assert both
        assert (alone.path.parent.name, both.path.parent.name) == ("alone", "km_1")
        assert (both.path / WEIGHTS).is_file()


async def test_the_engines_ids_are_positive_and_far_from_those_of_kms(
    composites: Composites, km: KM, ke: KE
) -> None:
    async with composites.using(ke, km) as one, composites.using(ke, None) as two:
        assert sorted((one.engine_id, two.engine_id)) == [FIRST_ENGINE_ID, FIRST_ENGINE_ID + 1]
        assert one.name != two.name
    async with composites.using(ke, km) as again:
        assert again == one


async def test_it_is_made_once_however_many_ask(
    composites: Composites, km: KM, ke: KE, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: object, **named: object) -> int:
        calls.append(arguments)
        return compose(*arguments, **named)  # type: ignore[arg-type]

    from server.composites import compose

    monkeypatch.setattr("server.composites.compose", counted)

    async def ask() -> Adapter:
        async with composites.using(ke, km) as adapter:
            return adapter

    assert len(set(await asyncio.gather(*(ask() for _ in range(8))))) == 1
    assert len(calls) == 1


async def test_who_asked_first_may_go_away(composites: Composites, km: KM, ke: KE, root: Path) -> None:
    async def ask() -> None:
        async with composites.using(ke, km):
            pass

    first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert on_disk(root)


async def test_files_that_do_not_fit_are_an_error_each_time(composites: Composites, km: KM, ke: KE) -> None:
    (Path(km.path) / WEIGHTS).unlink()
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ArtifactError, match="lacks"):
                async with composites.using(ke, km):
                    pass
    assert {(entry["event"], entry["work"]) for entry in logs} == {("interrupted", "compose")}
    assert composites.bytes == 0


async def test_the_one_used_longest_ago_makes_room(
    root: Path, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    size = await _size_of_one(root, engine, ke, km)
    composites = Composites(root, engine, 2 * size, Metrics())
    first = await use(composites, engine, ke, other(km, 2))
    second = await use(composites, engine, ke, other(km, 3))
    assert await use(composites, engine, ke, other(km, 2)) == first
    await use(composites, engine, ke, other(km, 4))
    await composites.settled()
    assert composites.bytes == 2 * size
    assert not second.path.exists()
    assert first.path.exists()
    assert engine.evicted == [second]
    # Made again it is another adapter: what the engine may have kept of the former is never used for it.
    again = await use(composites, engine, ke, other(km, 3))
    assert again.path == second.path
    assert again.name != second.name
    assert again.engine_id > second.engine_id
    await composites.settled()


async def _size_of_one(root: Path, engine: ScriptedEngine, ke: KE, km: KM) -> int:
    made = Composites(root, engine, LARGE, Metrics())
    async with made.using(ke, km):
        pass
    forget_kms(root, {km.id})
    return made.bytes


async def test_one_in_use_stays_whatever_the_bound(
    root: Path, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    composites = Composites(root, engine, 1, Metrics())
    async with composites.using(ke, km) as adapter:
        async with composites.using(ke, None):
            pass
        await composites.settled()
        assert on_disk(root) == {adapter.path.name}
    await composites.settled()
    assert on_disk(root) == set()


async def test_what_was_made_before_a_restart_is_used_again(
    root: Path, engine: ScriptedEngine, km: KM, ke: KE, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Composites(root, engine, LARGE, Metrics())
    async with before.using(ke, km) as made:
        pass
    (root / "km_1" / ".cut short").mkdir()
    after = Composites(root, engine, LARGE, Metrics())
    assert after.bytes == before.bytes > 0
    assert not (root / "km_1" / ".cut short").exists()
    monkeypatch.setattr("server.composites.compose", None)
    async with after.using(ke, km) as found:
        assert found.path == made.path


async def test_the_order_outlives_a_restart(root: Path, engine: ScriptedEngine, km: KM, ke: KE) -> None:
    before = Composites(root, engine, LARGE, Metrics())
    async with before.using(ke, km) as first, before.using(ke, None) as second:
        os.utime(first.path, (100, 100))
        os.utime(second.path, (200, 200))
    after = Composites(root, engine, before.bytes, Metrics())
    async with after.using(replace(ke, id="ke_2"), None):
        pass
    await after.settled()
    assert (first.path.exists(), second.path.exists()) == (False, True)


async def test_one_that_the_engine_cannot_load_is_made_anew(
    composites: Composites, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    async def answer() -> Adapter:
        async with composites.using(ke, km) as adapter:
            damaged = adapter
            raise AdapterLoadError("damaged")
        return damaged

    with pytest.raises(AdapterLoadError):
        await answer()
    await composites.settled()
    assert composites.bytes == 0
    await use(composites, engine, ke, km)
    assert composites.bytes > 0


async def test_a_kms_composites_leave_the_engine(
    composites: Composites, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    of_km = await use(composites, engine, ke, km)
    kept = await use(composites, engine, ke, other(km, 2))
    assert [one.name for one in await composites.evict_kms([km])] == [of_km.name]
    assert set(engine.resident) == {kept.name}
    assert await composites.evict_kms([km]) == []


async def test_a_kes_composites_leave_the_engine(
    composites: Composites, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    gone = [await use(composites, engine, ke, one) for one in (km, None)]
    kept = await use(composites, engine, replace(ke, id="ke_2"), km)
    assert {one.name for one in await composites.evict_ke(ke)} == {adapter.name for adapter in gone}
    assert set(engine.resident) == {kept.name}


async def test_an_engine_that_is_not_there_keeps_the_files(
    root: Path, engine: ScriptedEngine, km: KM, ke: KE
) -> None:
    composites = Composites(root, engine, 1, Metrics())
    with capture_logs() as logs:
        async with composites.using(ke, km):
            await engine.close()
        await composites.settled()
    assert [entry["event"] for entry in logs] == ["composite kept: the engine is not there"]
    assert len(on_disk(root)) == 1


async def test_they_are_measured(root: Path, engine: ScriptedEngine, km: KM, ke: KE) -> None:
    metrics = Metrics()
    composites = Composites(root, engine, LARGE, metrics)
    async with composites.using(ke, km), composites.using(ke, None):
        pass
    shown = metrics.render().decode()
    assert "km_compose_seconds_count 2.0" in shown
    assert "km_composites 2.0" in shown
    assert f"km_composite_cache_bytes {float(composites.bytes)}" in shown
