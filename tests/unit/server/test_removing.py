"""Removal over HTTP: a KM alone, a version, a user; interrupted at any step, it finishes after a restart."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from km_registry import artifacts
from km_registry.jobs import MemoryJobQueue
from km_registry.registry import Registry
from km_registry.store.database import Database
from km_registry.types import Principal
from server.app import AppState
from server.engine.scripted import ScriptedEngine
from server.errors import RemovalPendingError
from tests.unit.server.conftest import Someone, error_of, train
from tests.unit.server.test_deletion import is_there, left_of
from tests.unit.server.test_versions import change


async def test_a_km_is_deleted_and_the_document_stays(
    ada: Someone, bob: Someone, registry: Registry, engine: ScriptedEngine
) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    assert (await ada.ask(document_id)).status_code == 200
    error_of(await bob.http.delete(f"/documents/{document_id}/km"), 404)
    response = await ada.http.delete(f"/documents/{document_id}/km")
    assert response.status_code == 200, response.text
    receipt = response.json()
    assert (receipt["kind"], receipt["km_ids"]) == ("km", [km.id])
    assert km.id in [adapter.name for adapter in engine.evicted]
    assert not is_there(km)
    assert error_of(await ada.ask(document_id), 409)["code"] == "km_not_trained"
    assert (await ada.ask(document_id, "icl")).status_code == 200
    assert (await ada.http.get(f"/receipts/{receipt['id']}")).json() == receipt
    error_of(await bob.http.get(f"/receipts/{receipt['id']}"), 404)
    error_of(await ada.http.delete(f"/documents/{document_id}/km"), 409)
    assert (await ada.http.post(f"/documents/{document_id}/train")).status_code == 202


async def test_a_former_version_is_deleted(ada: Someone, registry: Registry, state: AppState) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    error_of(await ada.http.delete(f"/documents/{document_id}/versions/1"), 409)
    await change(ada, document_id)
    response = await ada.http.delete(f"/documents/{document_id}/versions/1")
    assert response.status_code == 200, response.text
    assert not is_there(km)
    detail = (await ada.http.get(f"/documents/{document_id}")).json()
    assert [one["version"] for one in detail["versions"]] == [2]
    assert left_of(state.settings.data_dir, "opens at six") == []
    error_of(await ada.http.delete(f"/documents/{document_id}/versions/1"), 404)


async def test_a_user_is_deleted_with_all_they_own(
    ada: Someone, bob: Someone, admin: Someone, registry: Registry, state: AppState
) -> None:
    ids = [await ada.upload("Canary one."), await ada.upload("Canary two.")]
    train(registry, ids[0], ada.principal)
    error_of(await bob.http.delete(f"/users/{ada.principal.user_id}"), 403)
    response = await admin.http.delete(f"/users/{ada.principal.user_id}")
    assert response.status_code == 200, response.text
    assert response.json()["purged"] == {"documents": 2, "users": 1}
    error_of(await ada.http.get("/documents"), 401)
    assert left_of(state.settings.data_dir, "Canary") == []
    error_of(await admin.http.delete(f"/users/{ada.principal.user_id}"), 404)
    error_of(await admin.http.delete(f"/users/{admin.principal.user_id}"), 409)


async def remove(state: AppState, what: str, owner: Principal, admin: Principal, document_id: str) -> None:
    match what:
        case "km":
            await state.removing.km(owner, document_id)
        case "version":
            await state.removing.version(owner, document_id, 1)
        case "user":
            await state.removing.user(admin, owner.user_id)


class Killed(BaseException):
    """The process dies here."""


def dying(patch: pytest.MonkeyPatch, step: int, *places: tuple[Any, str]) -> Callable[[], bool]:
    """Have the `step`-th call of any of these die, and every later one too; whether it came to that."""
    calls = itertools.count()
    died = False

    def wrap(act: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal died
            if next(calls) >= step:
                died = True
                raise Killed
            return act(*arguments, **named)

        return call

    for holder, name in places:
        patch.setattr(holder, name, wrap(getattr(holder, name)))
    return lambda: died


@pytest.mark.parametrize("what", ["km", "version", "user"])
async def test_interrupted_at_every_step_it_finishes_after_a_restart(
    what: str,
    ada: Someone,
    admin: Someone,
    registry: Registry,
    queue: MemoryJobQueue,
    engine: ScriptedEngine,
    state: AppState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from km_registry.store import versions

    places = (
        (queue, "stop"),
        (engine, "evict"),
        (versions, "purge_dir"),
        (artifacts, "purge_dir"),
        (Database, "writing"),
        (Database, "checkpoint"),
    )
    finished_without_dying = False
    for step in itertools.count():
        user, key = registry.create_user(f"Cy {step}")
        cy = Someone(Principal(user.id), key, ada.http)
        document, _, _ = registry.add_document(cy.principal, "n", f"Canary {step}, first.")
        km = train(registry, document.id, cy.principal)
        if what == "version":
            registry.update_document(cy.principal, document.id, f"Canary {step}, second.")
        with monkeypatch.context() as patch:
            died = dying(patch, step, *places)
            with contextlib.suppress(Killed, RemovalPendingError):
                await remove(state, what, cy.principal, admin.principal, document.id)
        await state.replacements.settled()
        asked = bool(registry.removals.pending()) or not died()
        # A restart: what is pending goes on.
        await state.deletions.resume()
        await state.replacements.resume()
        await state.removing.resume()
        assert registry.removals.pending() == []
        assert is_there(km) is not asked
        # A former version's text goes by itself.
        gone = what == "version" or (what == "user" and asked)
        assert (left_of(state.settings.data_dir / "documents", f"Canary {step}, first") == []) is gone
        if not died():
            finished_without_dying = True
            break
    assert finished_without_dying
    assert step >= 4
