"""Sharing, users, groups, keys and the audit log over HTTP: what comes back, and what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.server.conftest import Someone, client_of, error_of, train


async def test_a_shared_document_is_read_and_asked(ada: Someone, bob: Someone, registry: Any) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    path = f"/documents/{document_id}/grants"
    shared = await ada.http.post(path, json={"user": "Bob"})
    assert shared.status_code == 201
    assert (shared.json()["principal_id"], shared.json()["role"]) == (bob.principal.user_id, "reader")
    assert (await bob.ask(document_id)).status_code == 200
    detail = (await bob.http.get(f"/documents/{document_id}")).json()
    assert detail["role"] == "reader"
    again = await ada.http.post(path, json={"user": bob.principal.user_id, "role": "owner"})
    assert (again.status_code, again.json()["role"]) == (200, "owner")
    assert [one["name"] for one in (await bob.http.get(path)).json()["grants"]] == ["Ada", "Bob"]
    assert (await ada.http.delete(f"{path}/{bob.principal.user_id}")).status_code == 204
    error_of(await bob.ask(document_id), 404)


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"user": "Eve"}, 422, "user", "no user 'Eve'"),
        ({"group": "Eve"}, 422, "group", "no group 'Eve'"),
        ({"user": "Ada"}, 422, "user", "yourself"),
        ({}, 422, "user", "either a user or a group"),
        ({"user": "Bob", "role": "writer"}, 422, "role", "'owner' or 'reader'"),
        ({"user": "Bob", "until": 1}, 422, "until", "no such field"),
    ],
)
async def test_what_cannot_be_shared_with(
    ada: Someone, bob: Someone, body: dict[str, Any], status: int, param: str, says: str
) -> None:
    document_id = await ada.upload()
    error = error_of(await ada.http.post(f"/documents/{document_id}/grants", json=body), status)
    assert error["param"] == param
    assert says in error["message"]


async def test_the_last_owner_stays(ada: Someone) -> None:
    document_id = await ada.upload()
    response = await ada.http.delete(f"/documents/{document_id}/grants/{ada.principal.user_id}")
    error = error_of(response, 409)
    assert error["param"] == "user"
    assert "stays its owner" in error["message"]


@pytest.mark.parametrize("path", ["/users", "/groups"])
async def test_a_name_is_taken_once(admin: Someone, path: str) -> None:
    assert (await admin.http.post(path, json={"name": "Eve"})).status_code == 201
    error = error_of(await admin.http.post(path, json={"name": " Eve "}), 409)
    assert error["param"] == "name"
    assert error_of(await admin.http.post(path, json={"name": " \n"}), 422)["param"] == "name"


async def test_users_come_in_pages(admin: Someone, ada: Someone, bob: Someone) -> None:
    first = (await admin.http.get("/users?limit=2")).json()
    assert [user["name"] for user in first["users"]] == ["Ada", "Bob"]
    rest = (await admin.http.get("/users", params={"after": first["next_after"]})).json()
    assert ([user["name"] for user in rest["users"]], rest["next_after"]) == (["Root"], None)


async def test_everybody_is_told_who_they_are(admin: Someone, bob: Someone) -> None:
    group = (await admin.http.post("/groups", json={"name": "Harbour"})).json()
    members = f"/groups/{group['id']}/members"
    assert (await admin.http.post(members, json={"user": "Bob"})).status_code == 201
    assert (await admin.http.post(members, json={"user": "Bob"})).status_code == 200
    me = (await bob.http.get("/users/me")).json()
    assert (me["user"]["name"], [one["id"] for one in me["groups"]]) == ("Bob", [group["id"]])
    assert me["key_id"].startswith("key_")
    assert (await admin.http.delete(f"{members}/{bob.principal.user_id}")).status_code == 204
    assert (await bob.http.get("/users/me")).json()["groups"] == []
    assert error_of(await admin.http.post(members, json={"user": "Eve"}), 422)["param"] == "user"


async def test_a_revoked_key_is_refused_from_the_next_request_on(ada: Someone, app: Any) -> None:
    made = (await ada.http.post("/keys", json={"name": "laptop"})).json()
    async with client_of(app, made["api_key"]) as laptop:
        assert (await laptop.get("/documents")).status_code == 200
        listed = (await ada.http.get("/keys")).json()["keys"]
        assert [key["name"] for key in listed] == ["first", "laptop"]
        assert all(key["last_used_at"] for key in listed)
        assert made["api_key"] not in str(listed)
        assert (await ada.http.delete(f"/keys/{made['key']['id']}")).json()["revoked_at"] is not None
        error_of(await laptop.get("/documents"), 401)
    assert (await ada.http.get("/documents")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "laptop", "expires_at": "2020-01-01T00:00:00Z"}, 422, "expires_at"),
        ({"name": "laptop", "expires_at": "soon"}, 422, "expires_at"),
        ({"name": "first"}, 409, "name"),
        ({"name": ""}, 422, "name"),
        ({"name": "laptop", "user": "Bob"}, 422, "user"),
    ],
)
async def test_keys_that_are_not_made(
    ada: Someone, bob: Someone, body: dict[str, Any], status: int, param: str
) -> None:
    assert error_of(await ada.http.post("/keys", json=body), status)["param"] == param
    assert error_of(await ada.http.get("/keys?user=Bob"), 422)["param"] == "user"


async def test_the_audit_log_comes_in_pages_and_quotes_nothing(ada: Someone, bob: Someone) -> None:
    document_id = await ada.upload(title="Harbour rules")
    error_of(await bob.ask(document_id), 404)
    await ada.ask(document_id, "icl")
    first = (await ada.http.get("/audit", params={"target": document_id, "limit": 2})).json()
    said = [(one["action"], one["actor_id"], one["outcome"]) for one in first["entries"]]
    assert said == [
        ("document.ask", ada.principal.user_id, "done"),
        ("document.ask", bob.principal.user_id, "refused"),
    ]
    older = {"target": document_id, "before": first["next_before"]}
    rest = (await ada.http.get("/audit", params=older)).json()
    assert ([one["action"] for one in rest["entries"]], rest["next_before"]) == (["document.create"], None)
    assert all(word not in str([first, rest]) for word in ("Harbour", "Ostrell", "open", "Ada"))
