"""Compares this machine's clock with the database's and Redis' for as long as the server runs."""

from __future__ import annotations

import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from km_registry.clocks import WARN_S, ahead_s, redis_clock, said
from km_registry.registry import Registry

_log = structlog.get_logger(__name__)

_NAMES = {"database": "the database", "redis": "Redis"}


class Clocks:
    """What was last found. Without Redis' connection only the database is asked."""

    def __init__(self, registry: Registry, redis: Redis | None) -> None:
        self._registry = registry
        self._redis = redis
        #: How many seconds each is ahead of this machine's clock, by whose it is; none of who is away.
        self.skews: dict[str, float] = {}

    @property
    def warnings(self) -> list[str]:
        """What is off, and what to do."""
        return [said(_NAMES[one], skew) for one, skew in self.skews.items() if abs(skew) > WARN_S]

    def measure(self) -> None:
        """Ask both. Blocking. Who is away is asked again the next time."""
        found = {}
        try:
            found["database"] = self._registry.clock_ahead_s()
            if self._redis is not None:
                found["redis"] = ahead_s(redis_clock(self._redis))
        except (SQLAlchemyError, RedisError) as error:
            _log.info("clocks not compared; will try again", error=type(error).__name__)
        self.skews = found
        for warning in self.warnings:
            _log.warning("clocks differ", what=warning)
