"""Documents that wait for a trainer."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


def sojourns(
    per_s: float, service_s: Callable[[random.Random], float], servers: int, *, jobs: int, seed: int = 0
) -> list[float]:
    """How many seconds each of the jobs is there, waiting or served: the first come is the first served.

    Jobs come at random, `per_s` of them in a second. The queue is empty at the beginning.
    """
    arrivals, services = (random.Random(f"{seed} {what}") for what in ("arrivals", "services"))  # noqa: S311
    free_at = [0.0] * servers
    now, found = 0.0, []
    for _ in range(jobs):
        now += arrivals.expovariate(per_s)
        end = max(now, free_at[0]) + service_s(services)
        heapq.heapreplace(free_at, end)
        found.append(end - now)
    return found
