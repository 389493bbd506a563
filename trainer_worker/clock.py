"""A worker whose clock is far from the others' takes no jobs: RQ would take it for gone, or never."""

from __future__ import annotations

import time

import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from km_registry.clocks import WARN_S, ahead_s, redis_clock, said
from km_registry.registry import Registry

_log = structlog.get_logger(__name__)

#: Between two comparisons, in seconds: while all is well, and while it is not.
_EVERY_S, _EVERY_S_WHEN_OFF = 60.0, 5.0


class WorkerClock:
    """Compared with the database's and Redis' every minute."""

    def __init__(self, registry: Registry, redis: Redis, *, lease_s: float) -> None:
        self._registry = registry
        self._redis = redis
        self._most_s = lease_s / 2
        self._due = 0.0
        self._is_off = False

    def is_off(self) -> bool:
        """Whether it is further from one of them than half of a job's lease. Compares when it is time."""
        if time.monotonic() >= self._due:
            self._compare()
            self._due = time.monotonic() + (_EVERY_S_WHEN_OFF if self._is_off else _EVERY_S)
        return self._is_off

    def _compare(self) -> None:
        try:
            # Closed again: its connections must not be carried over a fork.
            with self._registry:
                skews = {"the database": self._registry.clock_ahead_s()}
            skews["Redis"] = ahead_s(redis_clock(self._redis))
        except (SQLAlchemyError, RedisError) as error:
            _log.info("clocks not compared; will try again", error=type(error).__name__)
            return
        self._is_off = max(map(abs, skews.values())) > self._most_s
        for whose, skew in skews.items():
            if abs(skew) > WARN_S:
                _log.warning("clocks differ", what=said(whose, skew), takes_jobs=not self._is_off)
