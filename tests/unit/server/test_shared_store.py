"""A server whose artifacts are in a store that machines share."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from km_registry.base_model import BaseModel
from km_registry.errors import StoreUnavailableError
from km_registry.registry import Registry
from server.app import AppState
from server.config import ServerSettings
from server.keepers import keep_swept, keepers_of
from tests.support import BASE_FINGERPRINT, away, write_ke
from tests.unit.server.conftest import TEXT, Someone, error_of, train


@pytest.fixture
def settings(settings: ServerSettings, share: Path) -> ServerSettings:
    return settings.model_copy(update={"store_url": f"file://{share}"})


def without_copies(settings: ServerSettings) -> None:
    for copy in (settings.data_dir / "cache").glob("k?s/k?_*"):
        shutil.rmtree(copy)


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_what_is_not_here_is_fetched_for_an_answer(
    ada: Someone, registry: Registry, settings: ServerSettings, tmp_path: Path
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    registry.kes.register(
        write_ke(tmp_path / "ke"), BaseModel(tmp_path, "test", BASE_FINGERPRINT), make_default=True
    )
    for fields in ({}, {"ke": "default"}):
        without_copies(settings)
        assert (await ada.ask(document_id, **fields)).status_code == 200
        assert files_in(Path(km.path))
    response = await ada.http.get(f"/documents/{document_id}/km")
    assert response.status_code == 200


async def test_while_it_is_away_what_is_here_is_answered(
    ada: Someone, registry: Registry, settings: ServerSettings, share: Path
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    with away(share):
        assert (await ada.ask(document_id)).status_code == 200
        assert (await ada.ask(document_id, "icl")).status_code == 200
        without_copies(settings)
        assert error_of(await ada.ask(document_id), 503)["code"] == "store_unavailable"
    assert (await ada.ask(document_id)).status_code == 200


async def test_an_upload_while_it_is_away_leaves_nothing(
    ada: Someone, registry: Registry, settings: ServerSettings, share: Path
) -> None:
    with away(share):
        response = await ada.http.post("/documents", json={"title": "Harbour", "text": TEXT})
        assert error_of(response, 503)["code"] == "store_unavailable"
        assert "retry-after" in response.headers
    assert registry.list_documents(ada.principal) == []
    registry.recover()
    assert files_in(settings.data_dir / "cache" / "documents") == []
    assert await ada.upload()


async def test_a_deletion_while_it_is_away_is_completed_later(
    ada: Someone, registry: Registry, state: AppState, settings: ServerSettings, share: Path
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    await state.retriever.settled()
    with away(share):
        pending = await ada.http.delete(f"/documents/{document_id}")
        assert error_of(pending, 503)["code"] == "deletion_pending"
        assert await state.deletions.resume() == 0
    assert await state.deletions.resume() == 1
    receipt = (await ada.http.get(f"/receipts/{document_id}")).json()
    # Text, KM (four files), index of passages (three).
    assert receipt["purged"]["store_objects"] == 8
    assert files_in(share) == []


def test_copies_are_swept(state: AppState) -> None:
    found = keepers_of(state)
    names = [one.__name__ for one in found]
    for one in found:
        one.close()
    assert "keep_swept" in names


async def test_what_came_into_the_store_too_late_is_removed(
    ada: Someone, registry: Registry, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    late = share / "documents" / document_id / "work" / km.job_id / "1.1.checkpoint"
    late.parent.mkdir(parents=True)
    late.write_text("of a worker that was killed")
    loop, swept, outcomes = asyncio.get_running_loop(), asyncio.Event(), [StoreUnavailableError()]
    sweep = Registry.sweep_store

    def sweeping(self: Registry) -> int:
        if outcomes:
            raise outcomes.pop()
        count = sweep(self)
        loop.call_soon_threadsafe(swept.set)
        return count

    monkeypatch.setattr(Registry, "sweep_store", sweeping)
    keeper = asyncio.create_task(keep_swept(registry, every_s=0.0))
    await asyncio.wait_for(swept.wait(), 10)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)

    assert not late.exists()
    assert (await ada.ask(document_id)).status_code == 200
