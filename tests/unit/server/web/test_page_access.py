"""Every route of the page: nobody without a session, nothing changed without the token, nothing of others."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from httpx import AsyncClient

from km_registry.registry import Registry
from server.web.page_route import PageRoute
from tests.unit.server.conftest import Someone, train
from tests.unit.server.web.conftest import Browser

OPEN = {("GET", "/ui/sign-in"), ("POST", "/ui/sign-in"), ("GET", "/ui/static/{name}")}
#: What is sent where nothing would be too little.
BODIES = {
    "/ui/documents/{document_id}/ask": {"json": {"question": "When?", "modes": ["auto"]}},
    "/ui/documents/{document_id}/grants": {"data": {"who": "Ada", "kind": "user", "role": "reader"}},
    "/ui/keys": {"data": {"name": "x"}},
    "/ui/users": {"data": {"name": "x"}},
    "/ui/groups": {"data": {"name": "x"}},
    "/ui/groups/{group_id}/members": {"data": {"user": "Ada"}},
    "/ui/documents": {"json": {"title": "t", "text": "A text of the harbour."}},
}
ADMINS = ("/ui/people", "/ui/users", "/ui/groups", "/ui/workers")


def routes(app: FastAPI) -> list[tuple[str, str]]:
    found = [(m, one.path) for one in app.routes if isinstance(one, PageRoute) for m in one.methods]
    return sorted(found)


def filled(path: str, **ids: str) -> str:
    names = ("document_id", "principal_id", "group_id", "user_id", "key_id", "receipt_id", "version", "name")
    values = {name: f"{name[:3]}_aaaaaaaaaaaaaaaaaaaa" for name in names} | {"version": "1"} | ids
    return path.format(**values)


def test_the_page_is_no_part_of_the_api(app: FastAPI) -> None:
    assert len(routes(app)) >= 15
    assert not any(path.startswith("/ui") for path in app.openapi()["paths"])
    others = [one.path for one in app.routes if isinstance(one, APIRoute) and not isinstance(one, PageRoute)]
    assert not any(path == "/" or path.startswith("/ui") for path in others)


async def test_nobody_gets_anything_without_a_session(
    app: FastAPI, anyone: AsyncClient, ada: Someone
) -> None:
    for method, path in routes(app):
        if (method, path) in OPEN:
            continue
        # Not by an API key either: a page's form sent with one is no page's form.
        for headers in ({}, {"Authorization": f"Bearer {ada.key}"}):
            response = await anyone.request(method, filled(path), headers=headers, **BODIES.get(path, {}))
            assert response.status_code == 303, (method, path, response.text)
            assert response.headers["location"].startswith("/ui/sign-in")


async def test_nothing_is_changed_without_the_token(app: FastAPI, admins_page: Browser) -> None:
    for method, path in routes(app):
        if method == "GET" or (method, path) in OPEN:
            continue
        for headers in ({}, {"X-CSRF-Token": "0" * 64}):
            response = await admins_page.http.request(
                method, filled(path), headers=headers, **BODIES.get(path, {})
            )
            assert response.status_code == 403, (method, path, response.text)


@pytest.mark.parametrize("trained", [False, True])
async def test_documents_of_others_look_like_none(
    app: FastAPI, ada: Someone, bobs_page: Browser, admins_page: Browser, registry: Registry, trained: bool
) -> None:
    document_id = await ada.upload()
    if trained:
        train(registry, document_id, ada.principal)
    for method, path in routes(app):
        if "{document_id}" not in path:
            continue
        for browser in (bobs_page, admins_page):
            theirs, none = [
                await browser.do(filled(path, **ids), method, **BODIES.get(path, {}))
                for ids in ({"document_id": document_id}, {})
            ]
            assert theirs.status_code == none.status_code == 404, (method, path, theirs.text)
            assert theirs.content == none.content
    assert registry.get_document(ada.principal, document_id).version == 1


async def test_a_reader_reads_and_asks_and_no_more(
    app: FastAPI, ada: Someone, bob: Someone, bobs_page: Browser, registry: Registry
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    registry.people.share(ada.principal, document_id, user="Bob")
    allowed = {
        path for _, path in routes(app) if path.endswith(("{document_id}", "/training", "/state", "/ask"))
    }
    for method, path in routes(app):
        if "{document_id}" not in path:
            continue
        response = await bobs_page.do(filled(path, document_id=document_id), method, **BODIES.get(path, {}))
        expected = 200 if path in allowed and method != "PUT" else 404
        assert response.status_code == expected, (method, path, response.text)
    html = await bobs_page.see(f"/ui/documents/{document_id}")
    assert "Delete" not in html
    assert "shared with you" in html


async def test_administration_is_for_administrators(
    app: FastAPI, page: Browser, admins_page: Browser
) -> None:
    for method, path in routes(app):
        if path.startswith(ADMINS):
            response = await page.do(filled(path), method, **BODIES.get(path, {}))
            assert response.status_code == 403, (method, path, response.text)
    assert "/ui/people" not in await page.see("/")
    assert "/ui/people" in await admins_page.see("/")
