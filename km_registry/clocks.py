"""How far this machine's clock is from those of the machines that it works with.

Leases, heartbeats and retries are reckoned by the database's clock. What is left to each machine's own: when
API keys and sessions expire, what logs and receipts say, and how long RQ takes a silent worker for alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis

#: From here on, in seconds, it is worth an administrator's attention.
WARN_S = 2.0
#: An answer may be late; of several the quickest tells best.
_TRIES = 3


def ahead_s(ask: Callable[[], float], clock: Callable[[], float] = time.time) -> float:
    """How many seconds the clock that `ask` reads is ahead of this machine's: negative when it is behind.

    Right to half of the time that the quickest of three answers took.
    """
    found = []
    for _ in range(_TRIES):
        before = clock()
        theirs = ask()
        after = clock()
        found.append((after - before, theirs - (before + after) / 2))
    return min(found)[1]


def redis_clock(redis: Redis) -> Callable[[], float]:
    """Reads Redis' clock, in seconds since 1970. RedisError while it is away."""

    def read() -> float:
        seconds, microseconds = redis.time()
        return int(seconds) + int(microseconds) / 1e6

    return read


def said(whose: str, skew_s: float) -> str:
    """What is wrong, for people, and what to do."""
    way = "behind" if skew_s > 0 else "ahead of"
    return (
        f"This machine's clock is {abs(skew_s):.1f} s {way} that of {whose}. Synchronise the clocks of both "
        "machines (chrony, systemd-timesyncd): until then keys expire, and workers are taken for gone, at "
        "the wrong time."
    )
