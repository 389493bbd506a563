"""To which engine replica a request goes: to where its adapter probably is, unless that replica is too busy.

Every adapter has an order of homes among the replicas, by rendezvous hashing (Thaler and Ravishankar, 1998):
the same in every process, and of a replica that comes or goes only its own adapters move. No home may be much
busier than the average (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2017):
what is asked more than one replica can answer spills to its second home, always the same, then to its third.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import blake2b

_NOWHERE: Mapping[str, Collection[str]] = {}


class Router:
    """Ranks replicas for a request. Keeps no state: any number of gateways agree without talking."""

    def __init__(self, *, spread: float = 1.25, seed: int = 0) -> None:
        """`spread` is how much busier than the average a home may be; gateways with one `seed` agree.

        Raises:
            ValueError: a spread below 1, which no assignment can keep.
        """
        if not spread >= 1:
            raise ValueError(f"a spread of {spread}: some replica is at least as busy as the average; give 1 or more")
        self._spread = spread
        self._salt = seed.to_bytes(8, "little", signed=True)

    def rank(
        self,
        adapter: str | None,
        loads: Mapping[str, int],
        resident: Mapping[str, Collection[str]] = _NOWHERE,
    ) -> list[str]:
        """The live replicas, best first; none when there are none.

        Args:
            adapter: what the request needs; None for the base model, which is everywhere.
            loads: requests running and queued on each live replica.
            resident: adapters known to be in the slots of replicas, as far as that is known.
        """
        homes = self.homes(adapter or "", loads)
        if adapter is None:
            return sorted(homes, key=loads.__getitem__)
        bound = self.bound(loads)

        def preference(replica: str) -> tuple[bool, int, bool]:
            busy = loads[replica] > bound
            return busy, loads[replica] if busy else 0, adapter not in resident.get(replica, ())

        return sorted(homes, key=preference)

    def homes(self, adapter: str, replicas: Collection[str]) -> list[str]:
        """The adapter's own order of these replicas."""
        return sorted(replicas, key=lambda replica: (self._weight(adapter, replica), replica), reverse=True)

    def bound(self, loads: Mapping[str, int]) -> float:
        """The load above which a replica gets a request only if all others are above it too."""
        return self._spread * sum(loads.values()) / len(loads) + 1 if loads else 0.0

    def _weight(self, adapter: str, replica: str) -> bytes:
        # Not hash(): that differs from process to process.
        return blake2b(f"{adapter}\0{replica}".encode(), digest_size=8, salt=self._salt).digest()
