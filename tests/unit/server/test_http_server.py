"""The HTTP server inside a running event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from km_registry.errors import KMError
from server.http_server import KEEP_ALIVE_S, HttpServer
from server.startup import listen, url_of


async def test_serves_on_the_socket_until_stopped() -> None:
    app = FastAPI()

    @app.get("/x")
    async def x() -> str:
        return "y"

    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    handler = signal.getsignal(signal.SIGTERM)
    server = HttpServer(app, listener)
    await server.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/x")).json() == "y"
    assert signal.getsignal(signal.SIGTERM) == handler

    await server.stop()
    await server.stop()

    assert server.serving.done()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/x")


async def test_an_application_that_does_not_start() -> None:
    @asynccontextmanager
    async def broken(_: FastAPI) -> AsyncIterator[None]:
        raise AssertionError("broken")
        yield

    with listen("127.0.0.1", 0) as listener:
        server = HttpServer(FastAPI(lifespan=broken), listener)
        with pytest.raises(KMError, match=r"server\.log"):
            await server.start()
        await asyncio.wait_for(server.stop(), 5)


def test_clients_let_go_of_an_idle_connection_before_the_server_does() -> None:
    assert KEEP_ALIVE_S > 2 * (httpx.Limits().keepalive_expiry or 0) > 0
