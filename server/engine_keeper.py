"""Keeps the engine running: started again when it died, a bounded number of times."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import structlog

from server.engine.base import Engine, EngineUnavailableError

_log = structlog.get_logger(__name__)

CHECK_EVERY_S = 1.0
#: Restarts are counted over this long, in seconds.
WINDOW_S = 600.0


class EngineKeeper:
    """Watches one engine. What it knew of adapters is on disk: they are loaded again when asked for.

    Requests in flight when the engine dies fail with EngineUnavailableError, as do those that come before it
    is there again.
    """

    def __init__(self, engine: Engine, *, max_restarts: int) -> None:
        self._engine = engine
        self._max_restarts = max_restarts
        self._restarted: deque[float] = deque()
        #: Why the engine is not there, for people; None while it is.
        self.reason: str | None = None
        #: How often it was started again.
        self.restarts = 0
        #: Whether it is left alone, since it died too often.
        self.gave_up = False

    async def run(self, *, every_s: float = CHECK_EVERY_S) -> None:
        """Watch until cancelled, or until the engine died too often."""
        while True:
            try:
                await self._engine.check()
            except EngineUnavailableError as error:
                _log.error("the engine died", reason=str(error), log="engine.log")
                if not await self._restart():
                    return
            await asyncio.sleep(every_s)

    async def _restart(self) -> bool:
        """Start it again; whether it is there."""
        while self._may_restart():
            self.restarts += 1
            self.reason = f"The engine died and is being started again, for the {self.restarts}. time."
            # Ends what is left of it, and what still waits for it.
            await self._engine.close()
            try:
                await self._engine.start()
            except EngineUnavailableError as error:
                _log.error("the engine does not start again", reason=str(error), log="engine.log")
            else:
                # Counted from here: a start that takes minutes is no sign that it lived.
                self._restarted[-1] = time.monotonic()
                _log.info("the engine is there again", restarts=self.restarts)
                self.reason = None
                return True
        self.reason = (
            f"The engine died more than {self._max_restarts} times in {WINDOW_S / 60:.0f} minutes and is "
            "left alone. See engine.log, then restart the server."
        )
        self.gave_up = True
        _log.error("the engine is left alone", reason=self.reason)
        return False

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarted and now - self._restarted[0] > WINDOW_S:
            self._restarted.popleft()
        if len(self._restarted) >= self._max_restarts:
            return False
        self._restarted.append(now)
        return True
