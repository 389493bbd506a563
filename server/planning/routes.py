"""Ways to choose a replica: the product's, and those that it is compared with."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

from server.engine.routing import Router

Routing = Literal["affinity", "least-loaded", "random"]


class Routes(Protocol):
    """What chooses."""

    def rank(
        self, adapter: str | None, loads: Mapping[str, int], resident: Mapping[str, Collection[str]]
    ) -> list[str]:
        """All replicas, best first."""
        ...

    def sent(self, adapter: str | None, replica: str) -> None:
        """It was sent there."""
        ...


class AtRandom:
    """Any replica."""

    def __init__(self, seed: int) -> None:
        self._drawn = random.Random(seed)  # noqa: S311  reproducible, not a secret

    def rank(
        self, _adapter: str | None, loads: Mapping[str, int], _resident: Mapping[str, Collection[str]]
    ) -> list[str]:
        """Shuffled."""
        return self._drawn.sample(list(loads), len(loads))

    def sent(self, _adapter: str | None, _replica: str) -> None:
        """It does not matter."""


class LeastLoaded(AtRandom):
    """The replica with the fewest requests; any of them where there are several."""

    def rank(
        self, adapter: str | None, loads: Mapping[str, int], resident: Mapping[str, Collection[str]]
    ) -> list[str]:
        """By load."""
        return sorted(super().rank(adapter, loads, resident), key=loads.__getitem__)


def routes_of(routing: Routing, *, slots: int, told: bool, seed: int) -> Routes:
    """One gateway's."""
    if routing == "affinity":
        # Not the seed: all gateways agree on the homes.
        return Router(slots=slots, told=told)
    return AtRandom(seed) if routing == "random" else LeastLoaded(seed)
