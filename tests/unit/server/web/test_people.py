"""Sharing, keys, users and groups on the page."""

from __future__ import annotations

import re

from km_registry.registry import Registry
from tests.unit.server.conftest import Someone, error_of
from tests.unit.server.web.conftest import Browser

SECRET = re.compile(r'<code id="secret">(km_[\w-]{43})</code>')


async def test_sharing_and_taking_it_back(
    page: Browser, bobs_page: Browser, ada: Someone, bob: Someone
) -> None:
    document_id = await ada.upload()
    place = f"/ui/documents/{document_id}"
    response = await page.do(f"{place}/grants", data={"who": "Bob"})
    assert response.status_code == 200, response.text
    assert "Bob" in response.text
    assert "reader" in response.text
    assert "Harbour" in await bobs_page.see("/")
    response = await page.do(f"{place}/grants/{bob.principal.user_id}", "DELETE")
    assert "Bob" not in response.text
    assert (await bobs_page.http.get(place)).status_code == 404


async def test_sharing_with_a_group(page: Browser, admins_page: Browser, ada: Someone) -> None:
    document_id = await ada.upload()
    assert "Nobody is in it yet" in (await admins_page.do("/ui/groups", data={"name": "crew"})).text
    response = await page.do(f"/ui/documents/{document_id}/grants", data={"who": "crew", "kind": "group"})
    assert response.status_code == 200, response.text
    assert "crew" in response.text


async def test_whom_nobody_knows(page: Browser, ada: Someone) -> None:
    document_id = await ada.upload()
    response = await page.do(f"/ui/documents/{document_id}/grants", data={"who": "Nobody"})
    assert error_of(response, 422)["param"] == "user"


async def test_a_key_is_shown_once_and_ends_when_revoked(page: Browser, registry: Registry) -> None:
    response = await page.do("/ui/keys", data={"name": "the cabin", "days": "30"})
    found = SECRET.search(response.text)
    assert found, response.text
    principal = registry.authenticate(found[1])
    assert principal is not None
    html = await page.see("/ui/keys")
    assert "the cabin" in html
    assert found[1] not in html
    html = (await page.do(f"/ui/keys/{principal.key_id}", "DELETE")).text
    assert "the cabin" not in html
    assert "1 more was revoked" in html
    assert registry.authenticate(found[1]) is None


async def test_a_user_gets_a_key_groups_and_goes(admins_page: Browser, registry: Registry) -> None:
    response = await admins_page.do("/ui/users", data={"name": "Eve"})
    found = SECRET.search(response.text)
    assert found, response.text
    eve = registry.authenticate(found[1])
    assert eve is not None
    assert not eve.is_admin
    await admins_page.do("/ui/groups", data={"name": "crew"})
    html = await admins_page.see("/ui/people")
    group = re.search(r"/ui/groups/(grp_\w+)/members", html)
    assert group
    place = f"/ui/groups/{group[1]}/members"
    assert "Eve" in (await admins_page.do(place, data={"user": "Eve"})).text
    assert "Nobody" in (await admins_page.do(f"{place}/{eve.user_id}", "DELETE")).text
    assert "No group yet" in (await admins_page.do(f"/ui/groups/{group[1]}", "DELETE")).text
    response = await admins_page.do(f"/ui/users/{eve.user_id}", "DELETE")
    receipt = re.search(r"/ui/receipts/rcp_\w+", response.text)
    assert receipt, response.text
    assert "a user with all they own" in await admins_page.see(receipt[0])


async def test_an_administrator_makes_keys_for_others(admins_page: Browser, bob: Someone) -> None:
    response = await admins_page.do("/ui/keys", data={"name": "for Bob", "user": "Bob"})
    assert SECRET.search(response.text)
    assert re.search(r"for Bob</th>\s*<td>Bob</td>", response.text)
