"""How much a key and a user may ask for in a minute, counted in Redis: several servers count together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import RedisError

from km_registry.types import Principal
from server.config import ServerSettings
from server.errors import RateLimitedError

_log = structlog.get_logger(__name__)

T = TypeVar("T")
#: A limit, and whose it is.
Bound = tuple[RateLimitItem, str]
#: For how many seconds a Redis that was away is not asked: a connection that is not answered takes long.
_AWAY_S = 5.0


class Limiter:
    """Counts requests and tokens of keys and users. Blocking and thread-safe.

    Without Redis, also when it is away for a while, each server counts for itself.
    """

    def __init__(self, settings: ServerSettings, storage: Storage | None = None) -> None:
        self._settings = settings
        self._alone = FixedWindowRateLimiter(MemoryStorage())
        self._shared = None if storage is None else FixedWindowRateLimiter(storage)
        self._asked_again = 0.0

    @property
    def limits_requests(self) -> bool:
        """Whether requests are limited at all."""
        return bool(self._settings.key_requests_per_minute or self._settings.user_requests_per_minute)

    @property
    def limits_tokens(self) -> bool:
        """Whether tokens are limited at all."""
        return bool(self._settings.key_tokens_per_minute or self._settings.user_tokens_per_minute)

    def request(self, principal: Principal) -> None:
        """Count one request. RateLimitedError when that is more than the key or the user may send."""
        settings = self._settings
        per_minute = settings.key_requests_per_minute, settings.user_requests_per_minute
        for item, whose in _bounds(principal, "requests", *per_minute):
            if not self._hit(item, whose):
                raise self._refusal(item, whose, "requests")

    def admit(self, principal: Principal) -> None:
        """RateLimitedError when the key or the user has had all the tokens of this minute."""
        for item, whose in self._of_tokens(principal):
            if not self._left(item, whose):
                raise self._refusal(item, whose, "tokens")

    def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens that were read and written, also those beyond the limit: then the next ones wait."""
        for item, whose in self._of_tokens(principal):
            self._hit(item, whose, tokens)

    def _of_tokens(self, principal: Principal) -> Iterator[Bound]:
        settings = self._settings
        per_minute = settings.key_tokens_per_minute, settings.user_tokens_per_minute
        return _bounds(principal, "tokens", *per_minute)

    def _hit(self, item: RateLimitItem, whose: str, cost: int = 1) -> bool:
        return self._counted(lambda limiter: limiter.hit(item, whose, cost=cost))

    def _left(self, item: RateLimitItem, whose: str) -> bool:
        return self._counted(lambda limiter: limiter.test(item, whose))

    def _counted(self, call: Callable[[FixedWindowRateLimiter], T]) -> T:
        if self._shared is not None and time.monotonic() >= self._asked_again:
            try:
                return call(self._shared)
            except RedisError as error:
                self._asked_again = time.monotonic() + _AWAY_S
                _log.warning("limits are counted here alone: Redis is away", error=type(error).__name__)
        return call(self._alone)

    def _refusal(self, item: RateLimitItem, whose: str, what: str) -> RateLimitedError:
        ends = self._counted(lambda limiter: limiter.get_window_stats(item, whose)).reset_time
        seconds = max(1, math.ceil(ends - time.time()))
        holder = "API key" if whose.startswith("key:") else "user"
        return RateLimitedError(
            f"This {holder} has had its {item.amount} {what} of this minute. Try again in {seconds} s.",
            retry_after_s=seconds,
        )


def _bounds(principal: Principal, what: str, of_key: int | None, of_user: int | None) -> Iterator[Bound]:
    if of_key is not None and principal.key_id is not None:
        yield RateLimitItemPerMinute(of_key, namespace=f"km:{what}"), f"key:{principal.key_id}"
    if of_user is not None:
        yield RateLimitItemPerMinute(of_user, namespace=f"km:{what}"), f"user:{principal.user_id}"
