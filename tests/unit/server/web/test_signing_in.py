"""Signing in and out, and how a session ends with its key."""

from __future__ import annotations

import re

import pytest
from httpx import AsyncClient

from km_registry.registry import Registry
from tests.unit.server.conftest import Someone
from tests.unit.server.web.conftest import Browser, field


async def test_who_is_not_signed_in_is_sent_to_sign_in(browser: Browser) -> None:
    for place, to in (("/", "/ui/sign-in"), ("/ui/keys", "/ui/sign-in?to=/ui/keys")):
        response = await browser.http.get(place)
        assert (response.status_code, response.headers["location"]) == (303, to)


async def test_the_script_of_a_page_is_sent_to_sign_in(browser: Browser) -> None:
    response = await browser.http.get("/ui/rows", headers={"HX-Request": "true"})
    assert (response.status_code, response.headers["hx-redirect"]) == (401, "/ui/sign-in")


async def test_a_key_begins_a_session_in_a_cookie_that_scripts_cannot_read(
    browser: Browser, ada: Someone
) -> None:
    response = await browser.sign_in(f" {ada.key}\n", to="/ui/keys")
    assert (response.status_code, response.headers["location"]) == (303, "/ui/keys")
    cookie = next(one for one in response.headers.get_list("set-cookie") if one.startswith("km_session="))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ada.key not in cookie
    assert "Ada" in await browser.see("/")


async def test_over_https_the_cookie_stays_there(app: object, ada: Someone, browser: Browser) -> None:
    browser.http.base_url = "https://km"
    response = await browser.sign_in(ada.key)
    assert all("Secure" in one for one in response.headers.get_list("set-cookie") if "km_session=" in one)


async def test_a_wrong_key_says_so(browser: Browser) -> None:
    response = await browser.sign_in("km_wrong")
    assert response.status_code == 401
    assert "not known here" in response.text
    assert "km_wrong" not in response.text
    assert "km_session" not in response.cookies


async def test_nobody_can_sign_somebody_in_from_elsewhere(browser: Browser, ada: Someone) -> None:
    forms = [{"key": ada.key}, {"key": ada.key, "csrf": "0" * 64}]
    for form in forms:
        response = await browser.http.post("/ui/sign-in", data=form)
        assert response.status_code == 403
        assert "km_session" not in response.cookies


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x"])
async def test_signing_in_leads_nowhere_else(browser: Browser, ada: Someone, to: str) -> None:
    assert (await browser.sign_in(ada.key, to=to)).headers["location"] == "/"


async def test_a_session_ends_with_its_key_at_the_next_request(
    browser: Browser, ada: Someone, registry: Registry
) -> None:
    key, secret = registry.people.create_key(ada.principal, "browser")
    await browser.sign_in(secret)
    assert (await browser.http.get("/")).status_code == 200
    registry.people.revoke_key(ada.principal, key.id)
    assert (await browser.http.get("/")).status_code == 303


async def test_a_session_is_no_api_key(page: Browser) -> None:
    assert (await page.http.get("/documents")).status_code == 401


async def test_signing_out(page: Browser) -> None:
    token = field(await page.see("/"), "csrf")
    assert (await page.http.post("/ui/sign-out")).status_code == 403
    response = await page.http.post("/ui/sign-out", data={"csrf": token})
    assert (response.status_code, response.headers["location"]) == (303, "/ui/sign-in")
    assert (await page.http.get("/")).status_code == 303


@pytest.mark.parametrize("place", ["/", "/ui/sign-in", "/ui/documents/doc_none", "/ui/rows"])
async def test_pages_allow_nothing_but_their_own_files(page: Browser, place: str) -> None:
    response = await page.http.get(place)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert not re.search(r"<style|<script(?! src)| style=| on\w+=|https?://(?!www\.w3\.org)", response.text)


async def test_what_is_not_there_is_a_page(page: Browser) -> None:
    response = await page.http.get("/ui/documents/doc_none")
    assert response.status_code == 404
    assert "There is nothing here" in response.text


async def test_the_pages_files_may_be_kept(anyone: AsyncClient) -> None:
    html = (await anyone.get("/ui/sign-in")).text
    places = re.findall(r'(?:href|src)="(/ui/static/[^"]+)"', html)
    assert len(places) >= 5
    for place in places:
        response = await anyone.get(place)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
    assert (await anyone.get("/ui/static/none.js")).status_code == 404
