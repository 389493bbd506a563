"""Somebody who is signed in on the page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from tests.unit.server.conftest import Someone, client_of


@dataclass
class Browser:
    """A browser of the page, with its cookies."""

    http: AsyncClient
    _token: str | None = None

    async def sign_in(self, key: str, to: str = "/") -> Response:
        form = await self.http.get("/ui/sign-in")
        token = field(form.text, "csrf")
        return await self.http.post("/ui/sign-in", data={"key": key, "csrf": token, "to": to})

    async def token(self) -> str:
        if self._token is None:
            found = re.search(r'<meta name="csrf" content="(\w+)">', (await self.http.get("/")).text)
            assert found
            self._token = found[1]
        return self._token

    async def see(self, place: str) -> str:
        """A page's HTML."""
        response = await self.http.get(place)
        assert response.status_code == 200, response.text
        return response.text

    async def do(self, place: str, method: str = "POST", **sent: Any) -> Response:
        """What the page's script sends, with the token."""
        return await self.http.request(method, place, headers={"X-CSRF-Token": await self.token()}, **sent)


def field(html: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found, html
    return found[1]


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    """A browser that nobody is signed in with."""
    async with client_of(app) as client:
        yield Browser(client)


@pytest.fixture
async def page(browser: Browser, ada: Someone) -> Browser:
    """Ada's browser."""
    assert (await browser.sign_in(ada.key)).status_code == 303
    return browser


@pytest.fixture
async def bobs_page(app: FastAPI, bob: Someone) -> AsyncIterator[Browser]:
    """Bob's."""
    async with client_of(app) as client:
        bobs = Browser(client)
        await bobs.sign_in(bob.key)
        yield bobs


@pytest.fixture
async def admins_page(app: FastAPI, admin: Someone) -> AsyncIterator[Browser]:
    """An administrator's."""
    async with client_of(app) as client:
        admins = Browser(client)
        await admins.sign_in(admin.key)
        yield admins
