"""Erlang's formula."""

from __future__ import annotations

from math import factorial


def mean_wait(per_s: float, service_s: float, servers: int) -> float:
    """Mean seconds before service in an M/M/c queue."""
    offered = per_s * service_s
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    waits = last / (sum(offered**k / factorial(k) for k in range(servers)) + last)
    return waits * service_s / (servers - offered)
