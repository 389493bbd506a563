"""Which replicas this process knows to be alive. Serve keeps that in its request routers, and hands them to
nobody; it also pickles the module of a router by value, so what they share is here."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

#: What replicas tell of themselves.
IN_SLOTS, MAX_MODEL_LEN = "in_slots", "max_model_len"
#: The request routers of this process, by application.
_routers: WeakValueDictionary[str, Any] = WeakValueDictionary()


def register(app: str, router: Any) -> None:
    """The application's calls from this process go through the router."""
    _routers[app] = router


def live_replicas(app: str) -> list[str]:
    """Ids of the application's replicas, as far as this process has been told; none before its first call."""
    router = _routers.get(app)
    return [] if router is None else [one.unique_id for one in list(router.curr_replicas)]


def resident(app: str) -> dict[str, list[str]]:
    """Names of the adapters in the slots of each replica, as it told a moment ago."""
    router = _routers.get(app)
    return {} if router is None else told(list(router.curr_replicas.values()))


def shortest_context(app: str) -> int | None:
    """The fewest tokens that any replica reads, of those that told; None before one did."""
    router = _routers.get(app)
    replicas = [] if router is None else list(router.curr_replicas.values())
    found = [one.routing_stats[MAX_MODEL_LEN] for one in replicas if MAX_MODEL_LEN in one.routing_stats]
    return min(found, default=None)


def told(replicas: list[Any]) -> dict[str, list[str]]:
    """What these replicas of Serve told of their slots."""
    return {one.replica_id.unique_id: one.routing_stats.get(IN_SLOTS, []) for one in replicas}
