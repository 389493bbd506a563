"""Answers that are written together: each step of a replica brings every one of them a token."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from server.planning.clock import Clock
from server.planning.request import Request


class Decoding:
    """A batch. The more answers it has, and the more they look back on, the longer is a step."""

    def __init__(
        self, clock: Clock, step_s: Callable[[int, float], float], ended: Callable[[Request], None]
    ) -> None:
        """`step_s` tells the seconds of a step from the number of answers and the sum of their contexts."""
        self._clock, self._step_s, self._ended = clock, step_s, ended
        #: Those that end first, first: the step at which they do, in order of arrival, and they.
        self._batch: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._context = 0.0
        #: Steps since the beginning, and when that was found.
        self._steps = self._seen = 0.0
        self._paused = False
        self._plans = 0

    def __len__(self) -> int:
        return len(self._batch)

    def add(self, request: Request) -> None:
        """It is in every step from now on, until it has all its tokens."""
        self._advance()
        heapq.heappush(self._batch, (self._steps + request.steps, next(self._numbers), request))
        self._context += request.context_tokens
        self._plan()

    def pause(self) -> None:
        """Make no steps until `resume`."""
        self._advance()
        self._paused = True
        self._plans += 1

    def resume(self) -> None:
        """Go on."""
        self._seen, self._paused = self._clock.now, False
        self._plan()

    def _advance(self) -> None:
        if self._batch and not self._paused:
            self._steps += (self._clock.now - self._seen) / self._step()
        self._seen = self._clock.now

    def _step(self) -> float:
        return self._step_s(len(self._batch), self._context)

    def _plan(self) -> None:
        """What was planned before is no longer so."""
        self._plans += 1
        if self._batch and not self._paused:
            left = max(0.0, self._batch[0][0] - self._steps)
            self._clock.after(left * self._step(), self._end, self._plans)

    def _end(self, plan: int) -> None:
        if plan != self._plans:
            return
        # Exactly: sums of small times would never quite reach it.
        self._steps, self._seen = self._batch[0][0], self._clock.now
        request = heapq.heappop(self._batch)[2]
        self._context -= request.context_tokens
        self._plan()
        self._ended(request)
