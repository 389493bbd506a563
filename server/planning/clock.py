"""Simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """What happens when; things of one moment in the order in which they were planned."""

    def __init__(self) -> None:
        #: Seconds since the beginning.
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, then: Callable[[Any], None], what: Any = None) -> None:
        """Have `then(what)` called so much later."""
        heapq.heappush(self._coming, (self.now + seconds, next(self._numbers), then, what))

    def step(self) -> None:
        """Let the next thing happen.

        Raises:
            IndexError: nothing is to come.
        """
        self.now, _, then, what = heapq.heappop(self._coming)
        then(what)
