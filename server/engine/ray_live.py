"""Which replicas this process knows to be alive. Serve keeps that in its request routers, and hands them to
nobody; it also pickles the module of a router by value, so what they share is here."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

#: The request routers of this process, by application.
_routers: WeakValueDictionary[str, Any] = WeakValueDictionary()


def register(app: str, router: Any) -> None:
    """The application's calls from this process go through the router."""
    _routers[app] = router


def live_replicas(app: str) -> list[str]:
    """Ids of the application's replicas, as far as this process has been told; none before its first call."""
    router = _routers.get(app)
    return [] if router is None else [one.unique_id for one in list(router.curr_replicas)]
