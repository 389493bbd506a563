"""Answers with a KE: which one joins in, and why; and how KEs are registered and deleted over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient

from km_registry.base_model import BaseModel
from km_registry.registry import Registry
from km_registry.types import KE
from server.app import AppState
from server.composites import FIRST_ENGINE_ID
from server.config import ServerSettings
from server.engine.scripted import ScriptedEngine
from server.kes import KEs
from server.kms import adapter_of
from server.modes import AutoKE, AutoPolicy, Mode
from tests.support import BASE_FINGERPRINT, write_ke
from tests.unit.server.conftest import Someone, error_of, train


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return BaseModel(tmp_path, "test", BASE_FINGERPRINT)


@pytest.fixture
def ke(registry: Registry, base: BaseModel, tmp_path: Path) -> KE:
    """A registered KE, not the default."""
    return registry.kes.register(write_ke(tmp_path / "ke"), base)[0]


@pytest.fixture
def default(registry: Registry, base: BaseModel, tmp_path: Path) -> KE:
    """The default KE."""
    directory = write_ke(tmp_path / "default", name="usual", fill=0.75)
    return registry.kes.register(directory, base, make_default=True)[0]


def there(path: str) -> bool:
    return Path(path).exists()


async def answer(someone: Someone, document_id: str, **fields: Any) -> dict[str, Any]:
    response = await someone.ask(document_id, **fields)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


@pytest.mark.parametrize("mode", ["km", "km+rag", "rag", "icl", "base"])
async def test_a_ke_joins_in_in_every_mode(
    ada: Someone, registry: Registry, engine: ScriptedEngine, ke: KE, mode: str
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    told = await answer(ada, document_id, mode=mode, ke=ke.id)
    (request,) = engine.requests
    assert request.adapter is not None
    assert request.adapter.engine_id >= FIRST_ENGINE_ID
    with_km = mode in ("km", "km+rag")
    assert request.adapter.path.parent.name == (km.id if with_km else "alone")
    assert (told["ke_id"], told["ke_name"], told["why_ke"]) == (ke.id, "answers", "it was asked for")
    assert told["km_id"] == (km.id if with_km else None)
    assert told["warning"] is None


@pytest.mark.parametrize("mode", ["km", "rag", "icl", "base"])
async def test_without_being_asked_for_none_joins_in(
    ada: Someone, registry: Registry, engine: ScriptedEngine, default: KE, mode: str
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    told = await answer(ada, document_id, mode=mode)
    (request,) = engine.requests
    assert request.adapter == (adapter_of(km) if mode == "km" else None)
    assert (told["ke_id"], told["ke_name"]) == (None, None)
    assert told["why_ke"] == f"mode {mode} uses none unless one is asked for"


async def test_auto_uses_the_default(ada: Someone, registry: Registry, default: KE, ke: KE) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    told = await answer(ada, document_id, mode="auto")
    assert (told["mode"], told["ke_id"]) == ("km+rag", default.id)
    assert told["why_ke"] == "mode auto uses the default KE"
    told = await answer(ada, document_id, mode="auto", ke="none")
    assert (told["ke_id"], told["why_ke"]) == (None, "none was asked for")
    told = await answer(ada, document_id, mode="auto", ke="answers")
    assert told["ke_id"] == ke.id


async def test_auto_does_without_when_there_is_none(ada: Someone, ke: KE) -> None:
    told = await answer(ada, await ada.upload(), mode="auto")
    assert (told["ke_id"], told["why_ke"]) == (None, "no default KE is registered for the base model")


@pytest.mark.parametrize(
    ("setting", "used"),
    [
        (AutoKE.ALWAYS, {Mode.KM, Mode.RAG}),
        (AutoKE.WITH_KM, {Mode.KM}),
        (AutoKE.NEVER, set()),
    ],
)
def test_the_policy_says_when_auto_uses_it(
    registry: Registry, base: BaseModel, default: KE, setting: AutoKE, used: set[Mode]
) -> None:
    kes = KEs(registry.kes, base, AutoPolicy(Mode.KM, Mode.RAG, setting))
    chosen = {mode: kes.choose(None, mode, auto=True) for mode in (Mode.KM, Mode.RAG)}
    assert {mode for mode, choice in chosen.items() if choice.ke == default} == used
    assert all("mode auto uses" in choice.why for choice in chosen.values())
    assert kes.ahead() == (default if Mode.KM in used else None)


def test_nothing_is_made_ahead_where_auto_asks_no_km(
    registry: Registry, base: BaseModel, default: KE
) -> None:
    assert KEs(registry.kes, base, AutoPolicy(Mode.RAG, Mode.RAG)).ahead() is None


def test_the_setting_is_shipped_and_can_be_set() -> None:
    assert ServerSettings().auto_policy.ke is AutoKE.ALWAYS
    assert ServerSettings(auto_ke=AutoKE.WITH_KM).auto_policy.ke is AutoKE.WITH_KM


async def test_the_default_by_its_word(ada: Someone, default: KE) -> None:
    told = await answer(ada, await ada.upload(), mode="base", ke="default")
    assert (told["ke_id"], told["why_ke"]) == (default.id, "the default was asked for")


@pytest.mark.parametrize("asked", ["default", "answers", "ke_unknown"])
async def test_where_there_is_none_the_remedy_is_told(
    ada: Someone, engine: ScriptedEngine, asked: str
) -> None:
    error = error_of(await ada.ask(await ada.upload(), mode="base", ke=asked), 409)
    assert (error["code"], error["param"]) == ("no_ke", "ke")
    assert "POST /kes" in error["message"]
    assert engine.requests == []


async def test_an_unknown_one_is_named(ada: Someone, ke: KE) -> None:
    error = error_of(await ada.ask(await ada.upload(), mode="base", ke="answer"), 404)
    assert (error["code"], error["param"]) == ("ke_not_found", "ke")
    assert "'answer'" in error["message"]


async def test_one_for_another_base_model_is_told_from_an_unknown_one(
    ada: Someone, registry: Registry, tmp_path: Path
) -> None:
    elsewhere = BaseModel(tmp_path, "elsewhere", "0" * 64)
    directory = write_ke(tmp_path / "ke", base_fingerprint="0" * 64, base_model="elsewhere")
    registry.kes.register(directory, elsewhere)
    error = error_of(await ada.ask(await ada.upload(), mode="base", ke="answers"), 404)
    assert error["param"] == "ke"
    assert "another base model, elsewhere" in error["message"]


@pytest.mark.parametrize("asked", ["", "x" * 65, 7])
async def test_what_is_no_name_is_refused(ada: Someone, asked: object) -> None:
    assert error_of(await ada.ask(await ada.upload(), mode="base", ke=asked), 422)["param"] == "ke"


async def test_a_document_that_is_not_yours_is_not_there_whatever_the_ke(
    ada: Someone, bob: Someone, ke: KE
) -> None:
    document_id = await ada.upload()
    error = error_of(await bob.ask(document_id, mode="base", ke="no such KE"), 404)
    assert error["code"] == "not_found"


async def test_another_prompt_format_is_warned_of(
    ada: Someone, admin: Someone, registry: Registry, tmp_path: Path
) -> None:
    directory = write_ke(tmp_path / "ke", prompt_format="chat-v0")
    registered = (await admin.http.post("/kes", json={"directory": str(directory)})).json()
    assert "chat-v0" in registered["warning"]
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    told = await answer(ada, document_id, mode="km", ke="answers")
    assert "The KE answers was trained for the prompt format chat-v0" in told["warning"]


# --- on the OpenAI-compatible routes


async def completed(someone: Someone, model: str) -> Any:
    sent = {"model": model, "prompt": "It opens at", "max_tokens": 4}
    return await someone.http.post("/v1/completions", json=sent)


async def test_a_model_may_name_a_ke(
    ada: Someone, registry: Registry, engine: ScriptedEngine, ke: KE, default: KE
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    asked = [f"{document_id}+{ke.id}", f"{km.id}+answers", f"{document_id}+default", f"base+{ke.id}"]
    for model in asked:
        response = await completed(ada, model)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == model
    paths = [request.adapter.path for request in engine.requests if request.adapter]
    assert paths[0] == paths[1]
    assert [path.parent.name for path in paths] == [km.id, km.id, km.id, "alone"]
    assert [path.name.partition(".")[0] for path in paths] == [ke.id, ke.id, default.id, ke.id]


async def test_a_model_with_a_ke_that_is_not_there_is_refused(ada: Someone, bob: Someone, ke: KE) -> None:
    assert error_of(await completed(ada, "base+nobody"), 404)["code"] == "ke_not_found"
    document_id = await ada.upload()
    assert error_of(await completed(bob, f"{document_id}+answers"), 404)["code"] in ("not_found", None)


async def test_the_trainer_asks_no_ke(trainer: AsyncClient, ke: KE) -> None:
    sent = {"model": "base+answers", "prompt": "It", "max_tokens": 1}
    error_of(await trainer.post("/v1/completions", json=sent), 403)


# --- over HTTP


async def test_an_administrator_registers_one_and_everybody_sees_it(
    ada: Someone, admin: Someone, tmp_path: Path
) -> None:
    directory = write_ke(tmp_path / "ke")
    response = await admin.http.post("/kes", json={"directory": str(directory), "default": True})
    assert response.status_code == 201
    made = response.json()
    assert (made["created"], made["warning"]) == (True, None)
    assert (made["ke"]["name"], made["ke"]["is_default"], made["ke"]["fits"]) == ("answers", True, True)
    assert (await ada.http.get("/kes")).json() == {"kes": [made["ke"]]}
    again = await admin.http.post("/kes", json={"directory": str(directory)})
    assert (again.status_code, again.json()["created"]) == (200, False)


async def test_one_that_does_not_fit_is_refused_when_it_is_registered(admin: Someone, tmp_path: Path) -> None:
    wrong = write_ke(tmp_path / "ke", base_fingerprint="0" * 64)
    error = error_of(await admin.http.post("/kes", json={"directory": str(wrong)}), 422)
    assert (error["code"], error["param"]) == ("invalid_ke", "directory")
    assert "base model" in error["message"]


async def test_the_default_can_be_another(admin: Someone, default: KE, ke: KE) -> None:
    chosen = await admin.http.put(f"/kes/{ke.id}/default")
    assert chosen.json()["is_default"]
    listed = {one["id"]: one["is_default"] for one in (await admin.http.get("/kes")).json()["kes"]}
    assert listed == {ke.id: True, default.id: False}


async def test_only_administrators_change_them(ada: Someone, ke: KE, tmp_path: Path) -> None:
    for method, path, body in (
        ("POST", "/kes", {"directory": str(tmp_path)}),
        ("PUT", f"/kes/{ke.id}/default", None),
        ("DELETE", f"/kes/{ke.id}", None),
    ):
        error_of(await ada.http.request(method, path, json=body), 403)
    assert len((await ada.http.get("/kes")).json()["kes"]) == 1


async def test_what_is_unknown_cannot_be_changed(admin: Someone) -> None:
    for method, path in (("PUT", "/kes/ke_none/default"), ("DELETE", "/kes/ke_none")):
        assert error_of(await admin.http.request(method, path), 404)["code"] == "ke_not_found"


# --- deletion


async def test_a_deleted_ke_is_gone_with_its_composites(
    ada: Someone, admin: Someone, registry: Registry, engine: ScriptedEngine, ke: KE
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    for mode in ("km", "base"):
        await answer(ada, document_id, mode=mode, ke=ke.id)
    held = [request.adapter for request in engine.requests]
    told = (await admin.http.delete(f"/kes/{ke.id}")).json()
    assert told["ke_id"] == ke.id
    assert told["purged"]["composites"] == 2
    assert told["purged"]["adapter_bytes"] > 0
    assert sorted(engine.evicted, key=lambda one: one.name) == sorted(held, key=lambda one: one.name)  # type: ignore[union-attr]
    assert list(registry.kes.composites.iterdir()) == []
    error_of(await ada.ask(document_id, ke=ke.id), 409)
    assert (await answer(ada, document_id, mode="km"))["km_id"] == km.id


async def test_answers_under_way_are_finished_before_a_ke_is_deleted(
    ada: Someone,
    admin: Someone,
    registry: Registry,
    engine: ScriptedEngine,
    ke: KE,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, tombstoned, tombstone = asyncio.get_running_loop(), asyncio.Event(), registry.kes.tombstone

    def told(ke_id: str) -> KE:
        gone = tombstone(ke_id)
        loop.call_soon_threadsafe(tombstoned.set)
        return gone

    monkeypatch.setattr(registry.kes, "tombstone", told)
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    engine.hold()
    asking = asyncio.create_task(answer(ada, document_id, mode="km", ke=ke.id))
    await engine.until_asked(1)
    deleting = asyncio.create_task(admin.http.delete(f"/kes/{ke.id}"))
    await tombstoned.wait()
    assert there(ke.path)
    error_of(await ada.ask(document_id, ke=ke.id), 409)
    engine.release()
    assert (await asking)["ke_id"] == ke.id
    assert (await deleting).status_code == 200
    assert not there(ke.path)


async def test_a_deletion_of_a_ke_goes_on_after_a_restart(
    state: AppState, registry: Registry, engine: ScriptedEngine, ke: KE
) -> None:
    registry.kes.tombstone(ke.id)
    await state.ke_keeper.resume()
    assert registry.kes.pending() == []
    assert not there(ke.path)


async def test_a_deleted_document_takes_its_composites_with_it(
    ada: Someone, registry: Registry, engine: ScriptedEngine, ke: KE
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    await answer(ada, document_id, mode="km", ke=ke.id)
    (request,) = engine.requests
    receipt = (await ada.http.delete(f"/documents/{document_id}")).json()
    assert receipt["purged"]["composites"] == 1
    assert receipt["purged"]["composite_bytes"] > 0
    assert request.adapter in engine.evicted
    assert request.adapter is not None
    assert not request.adapter.path.exists()


async def test_a_superseded_km_takes_its_composites_with_it(
    ada: Someone, state: AppState, registry: Registry, engine: ScriptedEngine, ke: KE
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    await answer(ada, document_id, mode="km", ke=ke.id)
    (request,) = engine.requests
    await ada.http.put(f"/documents/{document_id}", json={"text": "The harbour opens at seven."})
    await state.replacements.settled()
    train(registry, document_id, ada.principal)
    await state.replacements.resume()
    assert request.adapter is not None
    assert request.adapter in engine.evicted
    assert not request.adapter.path.exists()


# --- ahead of the first question


async def test_a_new_kms_composite_is_made_ahead(
    ada: Someone, state: AppState, registry: Registry, default: KE
) -> None:
    before = await ada.upload()
    train(registry, before, ada.principal)
    assert await state.prefetching.published() == 0
    document_id = await ada.upload("The lighthouse is red.", "Light")
    km = train(registry, document_id, ada.principal)
    assert await state.prefetching.published() == 1
    assert [path.name for path in registry.kes.composites.iterdir()] == [km.id]
    assert await state.prefetching.published() == 0


async def test_nothing_is_made_ahead_without_a_default(
    ada: Someone, state: AppState, registry: Registry, ke: KE
) -> None:
    assert await state.prefetching.published() == 0
    train(registry, await ada.upload(), ada.principal)
    # The KM alone is loaded.
    assert await state.prefetching.published() == 1
    assert list(registry.kes.composites.iterdir()) == []
