"""Every route, asked by everybody: which status each of them gets.

The routes are the app's own: one that is not expected here fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from httpx import AsyncClient, Response

from km_registry.registry import Registry
from km_registry.types import Principal, Role
from server.web.page_route import PageRoute
from tests.unit.server.conftest import Someone, client_of, error_of, train

CALLERS = ("anonymous", "expired", "revoked", "stranger", "admin", "reader", "member", "owner")
KEYLESS = {"anonymous", "expired", "revoked"}
UNKNOWN = {
    "receipt_id": "doc_aaaaaaaaaaaaaaaaaaaa",
    "ke_id": "ke_aaaaaaaaaaaaaaaaaaaa",
    "name": "doc_aaaaaaaaaaaaaaaaaaaa",
    "document_id": "doc_aaaaaaaaaaaaaaaaaaaa",
    "principal_id": "usr_aaaaaaaaaaaaaaaaaaaa",
    "group_id": "grp_aaaaaaaaaaaaaaaaaaaa",
    "user_id": "usr_aaaaaaaaaaaaaaaaaaaa",
    "key_id": "key_aaaaaaaaaaaaaaaaaaaa",
    "km_id": "km_aaaaaaaaaaaaaaaaaaaa",
    "job_id": "job_aaaaaaaaaaaaaaaaaaaa",
}


@dataclass(frozen=True)
class Expected:
    """Who gets `ok`, what the others get, and what is sent: `body` may name ids like {document_id}."""

    ok: int
    allowed: set[str]
    otherwise: int = 404
    body: dict[str, Any] | None = None
    params: dict[str, str] = field(default_factory=dict)

    def status(self, caller: str) -> int:
        if caller in self.allowed:
            return self.ok
        return 401 if caller in KEYLESS else self.otherwise


USERS = set(CALLERS) - KEYLESS
ADMIN = {"admin"}
OWNER = {"owner"}
READERS = {"owner", "reader", "member"}
RECIPE = {"recipe": {"preset": "fast"}}

EXPECTED = {
    ("GET", "/healthz"): Expected(200, set(CALLERS)),
    ("GET", "/readyz"): Expected(200, set(CALLERS)),
    ("GET", "/openapi.json"): Expected(200, USERS),
    ("GET", "/metrics"): Expected(200, ADMIN, 403),
    ("GET", "/recipes"): Expected(200, USERS),
    ("GET", "/documents"): Expected(200, USERS),
    ("POST", "/documents"): Expected(202, USERS, body={"title": "t", "text": "A text of {number}."}),
    ("GET", "/documents/{document_id}"): Expected(200, READERS),
    ("PUT", "/documents/{document_id}"): Expected(202, OWNER, body={"text": "Another text of {number}."}),
    ("DELETE", "/documents/{document_id}"): Expected(200, OWNER),
    ("GET", "/documents/{document_id}/events"): Expected(200, READERS),
    ("POST", "/documents/{document_id}/train"): Expected(202, OWNER, body=RECIPE),
    # Nothing is being trained: who may cancel is told so.
    ("POST", "/documents/{document_id}/cancel"): Expected(409, OWNER),
    ("DELETE", "/documents/{document_id}/km"): Expected(200, OWNER),
    # It is the newest, which stays: who may delete a former one is told so.
    ("DELETE", "/documents/{document_id}/versions/{version}"): Expected(409, OWNER),
    # None waits: who may order the waiting ones is told so.
    ("PUT", "/documents/{document_id}/priority"): Expected(409, OWNER, body={"priority": "high"}),
    ("GET", "/documents/{document_id}/km"): Expected(200, OWNER),
    # It is no form: who may import is told so.
    ("POST", "/documents/import"): Expected(415, USERS, body={}),
    ("GET", "/documents/{document_id}/grants"): Expected(200, OWNER),
    ("POST", "/documents/{document_id}/grants"): Expected(201, OWNER, body={"user": "Somebody"}),
    ("DELETE", "/documents/{document_id}/grants/{principal_id}"): Expected(204, OWNER),
    ("GET", "/receipts/{receipt_id}"): Expected(200, OWNER),
    ("GET", "/kes"): Expected(200, USERS),
    # There is none: who may register, change or delete one is told so.
    ("POST", "/kes"): Expected(422, ADMIN, 403, body={"directory": "/nowhere"}),
    ("PUT", "/kes/{ke_id}/default"): Expected(404, ADMIN, 403),
    ("DELETE", "/kes/{ke_id}"): Expected(404, ADMIN, 403),
    ("POST", "/answer"): Expected(200, READERS, body={"document_id": "{document_id}", "question": "When?"}),
    ("POST", "/v1/completions"): Expected(
        200, READERS, body={"model": "{document_id}", "prompt": "It opens"}
    ),
    ("POST", "/v1/chat/completions"): Expected(
        200,
        READERS,
        body={"model": "{document_id}", "messages": [{"role": "user", "content": "When does it open?"}]},
    ),
    ("GET", "/v1/models"): Expected(200, USERS),
    ("GET", "/v1/models/{name}"): Expected(200, READERS),
    ("GET", "/v1/files"): Expected(200, USERS),
    # It is no form: who may upload is told so.
    ("POST", "/v1/files"): Expected(415, USERS, body={}),
    ("GET", "/v1/files/{document_id}"): Expected(200, READERS),
    ("DELETE", "/v1/files/{document_id}"): Expected(200, OWNER),
    ("GET", "/v1/fine_tuning/jobs"): Expected(200, USERS),
    ("POST", "/v1/fine_tuning/jobs"): Expected(
        200, OWNER, body={"model": "base", "training_file": "{document_id}"}
    ),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): Expected(200, READERS),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): Expected(200, READERS),
    # It is over: who may cancel it is told so.
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): Expected(409, OWNER),
    ("POST", "/mcp"): Expected(200, USERS, body={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    ("GET", "/users"): Expected(200, ADMIN, 403),
    ("POST", "/users"): Expected(201, ADMIN, 403, body={"name": "user {number}"}),
    ("GET", "/users/me"): Expected(200, USERS),
    ("DELETE", "/users/{user_id}"): Expected(200, ADMIN, 403),
    ("GET", "/groups"): Expected(200, USERS),
    ("POST", "/groups"): Expected(201, ADMIN, 403, body={"name": "group {number}"}),
    ("DELETE", "/groups/{group_id}"): Expected(204, ADMIN, 403),
    ("GET", "/groups/{group_id}/members"): Expected(200, {"admin", "member"}),
    ("POST", "/groups/{group_id}/members"): Expected(201, ADMIN, 403, body={"user": "Somebody"}),
    ("DELETE", "/groups/{group_id}/members/{user_id}"): Expected(204, ADMIN, 403),
    ("GET", "/keys"): Expected(200, USERS),
    ("POST", "/keys"): Expected(201, USERS, body={"name": "key {number}"}),
    ("DELETE", "/keys/{key_id}"): Expected(200, {"owner", "admin"}),
    ("GET", "/audit"): Expected(200, USERS),
    ("GET", "/workers"): Expected(200, ADMIN, 403),
}


class World:
    """Everybody who may call, and what they call about: made anew for each of them."""

    def __init__(self, app: FastAPI, registry: Registry) -> None:
        self._app = app
        self._registry = registry
        self._numbers = count()
        self.users: dict[str, Principal] = {}
        self.keys: dict[str, str | None] = {"anonymous": None}
        for name in ("owner", "reader", "member", "stranger", "admin", "Somebody"):
            user, self.keys[name] = registry.create_user(name, is_admin=name == "admin")
            self.users[name] = Principal(user.id, is_admin=user.is_admin)
        self._end_keys()

    def _end_keys(self) -> None:
        """Keys of the owner that work no more: by having them, nobody is the owner."""
        people, owner = self._registry.people, self.users["owner"]
        revoked, self.keys["revoked"] = people.create_key(owner, "revoked")
        people.revoke_key(owner, revoked.id)
        soon = datetime.now(UTC) + timedelta(days=1)
        _, self.keys["expired"] = people.create_key(owner, "expired", expires_at=soon)

    def things(self, *, deleted: bool = False) -> dict[str, str]:
        """A trained document that is shared, a group, a key: their ids."""
        people, owner, admin = self._registry.people, self.users["owner"], self.users["admin"]
        number = next(self._numbers)
        document, _, _ = self._registry.add_document(owner, "t", f"The harbour of Ostrell opens at {number}.")
        km = train(self._registry, document.id, owner)
        group = people.create_group(admin, f"shared {number}")
        people.add_member(admin, group.id, "member")
        leaving, _ = self._registry.create_user(f"leaving {number}")
        people.add_member(admin, group.id, leaving.id)
        people.share(owner, document.id, user="reader", role=Role.READER)
        people.share(owner, document.id, group=group.id, role=Role.READER)
        key, _ = people.create_key(owner, f"key of {number}")
        if deleted:
            self._registry.tombstone(owner, document.id)
            self._registry.complete_deletion(document.id, self._registry.purge(document.id))
        return {
            "document_id": document.id,
            "name": document.id,
            "receipt_id": document.id,
            "version": "1",
            "ke_id": UNKNOWN["ke_id"],
            "km_id": km.id,
            "job_id": km.job_id,
            "group_id": group.id,
            "principal_id": group.id,
            "user_id": leaving.id,
            "key_id": key.id,
            "number": str(number),
        }

    def client(self, caller: str) -> AsyncClient:
        """A client with the caller's key."""
        return client_of(self._app, self.keys[caller])


@pytest.fixture
def world(app: FastAPI, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(app, registry)
    later = datetime.now(UTC) + timedelta(days=2)
    for module in ("access", "keys"):
        monkeypatch.setattr(f"km_registry.store.{module}.now", lambda: later)
    return made


def _filled(template: Any, things: dict[str, str]) -> Any:
    if isinstance(template, str):
        return template.format(**things)
    if isinstance(template, list):
        return [_filled(value, things) for value in template]
    if isinstance(template, dict):
        return {name: _filled(value, things) for name, value in template.items()}
    return template


async def ask(client: AsyncClient, route: tuple[str, str], things: dict[str, str]) -> Response:
    method, path = route
    body = _filled(EXPECTED[route].body, things)
    return await client.request(method, path.format(**things), json=body)


def _routes(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in app.routes
        # The web page's are asked in tests/unit/server/web.
        if isinstance(route, APIRoute) and not isinstance(route, PageRoute)
        for method in route.methods
    }


def test_every_route_of_the_app_is_expected(app: FastAPI) -> None:
    assert _routes(app) == set(EXPECTED)


@pytest.mark.parametrize("route", EXPECTED, ids=lambda route: " ".join(route))
async def test_everybody_gets_what_they_may(route: tuple[str, str], world: World) -> None:
    things = world.things(deleted="receipts" in route[1])
    for caller in CALLERS:
        if route[0] != "GET":
            things = world.things()
        async with world.client(caller) as client, world.client("owner") as owner:
            response = await ask(client, route, things)
            assert response.status_code == EXPECTED[route].status(caller), (caller, response.text)
            refused = response.status_code >= 400
            if refused:
                error_of(response, EXPECTED[route].status(caller))
            if refused and "owner" in EXPECTED[route].allowed:
                # Nothing was done by it.
                assert (await ask(owner, route, things)).status_code == EXPECTED[route].ok


OF_SOMETHING = [
    route
    for route, expected in EXPECTED.items()
    if "{" in route[1] or "_id}" in str((expected.body or {}).values())
]


@pytest.mark.parametrize("route", OF_SOMETHING, ids=lambda route: " ".join(route))
async def test_not_yours_looks_like_not_there(route: tuple[str, str], world: World) -> None:
    things = world.things(deleted="receipts" in route[1])
    for caller in (caller for caller in CALLERS if caller not in EXPECTED[route].allowed):
        async with world.client(caller) as client:
            yours = await ask(client, route, things)
            there = await ask(client, route, things | UNKNOWN)
        assert (yours.status_code, yours.content) == (there.status_code, there.content), caller
        assert _unvarying(yours) == _unvarying(there), caller


@pytest.mark.parametrize("model", ["km_id", "document_id"])
async def test_kms_of_others_look_like_none(model: str, world: World) -> None:
    things = world.things()
    for caller in ("stranger", "admin"):
        async with world.client(caller) as client:
            yours, there = [
                await client.post("/v1/completions", json={"model": name, "prompt": "It opens"})
                for name in (things[model], UNKNOWN[model])
            ]
        assert error_of(yours, 404)
        assert yours.content == there.content


async def test_lists_show_what_the_caller_may_see_and_as_what(world: World) -> None:
    things = world.things()
    seen = {}
    for caller in sorted(USERS):
        async with world.client(caller) as client:
            documents = (await client.get("/documents")).json()["documents"]
            models = (await client.get("/v1/models")).json()["data"]
        names = {one["id"]: one["role"] for one in models if one["id"] != "base"}
        listed = {one["id"]: one["role"] for one in documents}
        assert names == {name: role for role in listed.values() for name in (*listed, things["km_id"])}
        seen[caller] = listed.get(things["document_id"])
    assert seen == {"owner": "owner", "reader": "reader", "member": "reader", "stranger": None, "admin": None}


def _unvarying(response: Response) -> dict[str, str]:
    varying = ("date", "x-request-id")
    return {name: value for name, value in response.headers.items() if name not in varying}


async def test_a_reader_is_told_nothing_by_metrics_or_the_audit_log(ada: Someone, bob: Someone) -> None:
    document_id = await ada.upload()
    await ada.http.post(f"/documents/{document_id}/grants", json={"user": "Bob"})
    error_of(await bob.http.get("/metrics"), 403)
    entries = (await bob.http.get("/audit", params={"target": document_id})).json()["entries"]
    assert {entry["action"] for entry in entries} == {"grant.reader"} or not entries
