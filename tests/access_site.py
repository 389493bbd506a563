"""The application that the access machine drives: one for all examples, whose loop rests between steps."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from httpx import AsyncClient, Response

from tests.inprocess import Place, place
from tests.unit.server.conftest import client_of


class Site:
    """The application, one for all examples, in a loop that goes on between requests."""

    def __init__(self, data_dir: Path) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.place: Place = self.run(self._stack.enter_async_context(place(data_dir)))
        self.numbers = itertools.count()
        #: Comparisons with the model, by what was asked.
        self.checks: Counter[str] = Counter()

    def run(self, work: Any) -> Any:
        """The result of a coroutine."""
        return self._runner.run(work)

    def client(self, key: str) -> AsyncClient:
        """A client with this key."""
        return client_of(self.place.app, key)

    def close(self) -> None:
        """End it."""
        self.run(self._stack.aclose())
        self._runner.close()


def unvarying(response: Response) -> dict[str, str]:
    """The headers, without those that are another in every answer."""
    varying = ("date", "x-request-id")
    return {name: value for name, value in response.headers.items() if name not in varying}
