"""A real S3-protocol server on the loopback, for tests of what several machines share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import httpx
import obstore
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore, from_url

_buckets = itertools.count()


class S3Server:
    """An S3 that can go away and come back with all that it has."""

    def __init__(self) -> None:
        self._server: ThreadedMotoServer | None = None
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Listen no more. Idempotent."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def bucket(self) -> str:
        """A new bucket's name."""
        name = f"bucket-{next(_buckets)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return name

    @contextmanager
    def credentials(self) -> Iterator[None]:
        """The environment that reaches it, as an operator would set it."""
        environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }
        with patch.dict(os.environ, environment):
            yield


@contextmanager
def running() -> Iterator[S3Server]:
    """A server for as long as the block runs."""
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


def raw(url: str) -> ObjectStore:
    """The store itself, to look into it and to spoil what is in it."""
    return from_url(url)


def keys(store: ObjectStore) -> list[str]:
    """All that it holds."""
    return sorted(one["path"] for chunk in obstore.list(store) for one in chunk)
