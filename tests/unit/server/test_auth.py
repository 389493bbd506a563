"""Every route but two needs a key, and a key shows its user's documents only."""

from __future__ import annotations

import pytest
from httpx import AsyncClient

from km_registry.registry import Registry
from tests.unit.server.conftest import Someone, error_of, train
from tests.unit.server.test_access_matrix import EXPECTED

OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
ROUTES = [route for route in EXPECTED if route not in OPEN]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer km_wrong"}, {"Authorization": "Basic eDp5"}]
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_key_is_needed(anyone: AsyncClient, method: str, path: str, headers: dict[str, str]) -> None:
    response = await anyone.request(method, path, headers=headers)
    assert error_of(response, 401)["code"] == "invalid_api_key"
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_others_documents_cannot_be_asked(ada: Someone, bob: Someone, registry: Registry) -> None:
    document_id = await ada.upload()
    km = train(registry, document_id, ada.principal)
    for mode in ("km", "icl", "base"):
        assert (await bob.ask(document_id, mode)).content == (await bob.ask("doc_unknown", mode)).content
    for model in (document_id, km.id, "doc_unknown", "km_unknown"):
        error_of(await bob.http.post("/v1/completions", json={"model": model, "prompt": "a"}), 404)


async def test_admins_do_not_see_others_documents(ada: Someone, admin: Someone) -> None:
    document_id = await ada.upload()
    error_of(await admin.http.get(f"/documents/{document_id}"), 404)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[1] != "/v1/completions"])
async def test_internal_key_may_only_complete(trainer: AsyncClient, method: str, path: str) -> None:
    if path == "/answer":
        response = await trainer.post(path, json={"document_id": "doc_x", "question": "?"})
    else:
        response = await trainer.request(method, path, json={"name": "eve"} if path == "/users" else None)
    assert error_of(response, 403)["type"] == "permission_error"


@pytest.mark.parametrize(("method", "path"), [("POST", "/users"), ("GET", "/metrics")])
async def test_administration(ada: Someone, method: str, path: str) -> None:
    error = error_of(await ada.http.request(method, path, json={"name": "eve"}), 403)
    assert "administrator" in error["message"]


async def test_new_user(admin: Someone, anyone: AsyncClient) -> None:
    response = await admin.http.post("/users", json={"name": "Eve"})
    assert response.status_code == 201
    assert response.json()["user"]["name"] == "Eve"
    key = response.json()["api_key"]
    listing = await anyone.get("/documents", headers={"Authorization": f"Bearer {key}"})
    assert listing.json() == {"documents": [], "next_before": None}


async def test_unknown_route_and_method(ada: Someone) -> None:
    assert error_of(await ada.http.get("/nowhere"), 404)["code"] == "no_such_route"
    error_of(await ada.http.put("/documents"), 405)
