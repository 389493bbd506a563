"""The HTTP server inside the supervisor's event loop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from km_registry.errors import KMError

#: Requests in flight may run this many more seconds when the server stops.
GRACE_S = 2
_NOT_STARTED = "The HTTP application did not start; see server.log."


#: How long a connection without requests is kept, in seconds. Longer than clients and proxies keep theirs:
#: who sends on a connection that is being closed gets no answer.
KEEP_ALIVE_S = 75


class HttpServer:
    """Serves an application on a socket that listens already."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = _Server(config)
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    @property
    def serving(self) -> asyncio.Task[None]:
        """Ends when the server has ended."""
        assert self._serving is not None
        return self._serving

    async def start(self) -> None:
        """Serve; returns once requests are taken.

        Raises:
            KMError: the application does not start.
        """
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        started = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({self._serving, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._serving.done():
            await self._serving

    async def stop(self) -> None:
        """Take no more requests, let those in flight end for a moment, then cut them off. Idempotent."""
        if self._serving is not None and not self._serving.done():
            # The way of a signal: event streams watch it to end themselves.
            self._server.handle_exit(signal.SIGTERM, None)
            await self._serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when requests are taken."""
        try:
            await super().startup(sockets)
        except SystemExit as error:  # uvicorn would end the whole process
            raise KMError(_NOT_STARTED) from error
        if not self.started:
            raise KMError(_NOT_STARTED)
        self.ready.set()
