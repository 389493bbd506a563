"""To which engine replica a request goes: to where its adapter probably is, unless that replica is too busy.

Every adapter has an order of homes among the replicas, by rendezvous hashing (Thaler and Ravishankar, 1998):
the same in every process, and when a replica comes or goes only its own adapters move. A request goes

1. to a replica in whose slots its adapter is, as replicas tell or as this router remembers of what it sent;
2. else to its first home, or where replicas tell to one of its first two;
3. else anywhere; each time to the least busy of them.

A replica that is much busier than the average comes last (Mirrokni, Thorup and Zadimoghaddam, "Consistent
Hashing with Bounded Loads", 2017): what is asked more than one replica can answer spills to another home.
With few requests in flight the average says little: by a request or two for each slot it may be exceeded.

Where replicas do not tell, an adapter must have one home, or gateways that do not see each other's requests
send it to several: three of them then find 0.52 of the adapters of Zipf's law in a slot, instead of 0.62.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from hashlib import blake2b

#: Requests for every slot by which the bound exceeds the average.
_SLACK = 1.5
#: Adapters whose homes are known without hashing.
_MOST_HOMES = 10_000
_NOTHING: Mapping[str, Collection[str]] = {}


class Router:
    """Ranks replicas for a request. Every gateway has one of its own; they need not talk to each other."""

    def __init__(self, *, slots: int, told: bool = False, spread: float = 1.25, seed: int = 0) -> None:
        """A router that has sent nothing yet.

        Args:
            slots: how many adapters a replica has in slots.
            told: whether replicas tell what is in their slots, within seconds.
            spread: how many times as busy as the average a replica may be, besides 1.5 requests a slot.
            seed: gateways with the same one agree on the homes.

        Raises:
            ValueError: no slot, or a spread below 1.
        """
        if slots < 1:
            raise ValueError(f"{slots} slots: give at least 1")
        if not spread >= 1:
            raise ValueError(f"spread {spread}: some replica is as busy as the average, so give at least 1")
        self._slack, self._spread = _SLACK * slots, spread
        self._choices = 2 if told else 1
        # Replicas know better what is there; without them, what left its slot is at least in memory.
        self._remembered = slots if told else 4 * slots
        self._salt = seed.to_bytes(8, "little", signed=True)
        #: By replica, what was sent there last; the latest is last.
        self._sent: dict[str, OrderedDict[str, None]] = {}
        self._homes: dict[str, list[str]] = {}
        self._replicas: frozenset[str] = frozenset()

    def rank(
        self,
        adapter: str | None,
        loads: Mapping[str, int],
        resident: Mapping[str, Collection[str]] = _NOTHING,
    ) -> list[str]:
        """All live replicas, best first.

        Args:
            adapter: what the request needs; None for the base model, which is everywhere.
            loads: requests running and queued on each live replica.
            resident: the adapters in the slots of replicas, as far as they have told.
        """
        for gone in self._sent.keys() - loads.keys():
            del self._sent[gone]
        homes = self.homes(adapter or "", loads)
        if adapter is None:
            return sorted(homes, key=loads.__getitem__)
        bound = self.bound(loads)
        first = homes[: self._choices]

        def preference(replica: str) -> tuple[int, int]:
            load = loads[replica]
            if load > bound:
                return 3, load
            if adapter in resident.get(replica, ()) or adapter in self._sent.get(replica, ()):
                return 0, load
            return (1 if replica in first else 2), load

        return sorted(homes, key=preference)

    def sent(self, adapter: str | None, replica: str) -> None:
        """The request went there. Replicas tell what they have too late for those that follow at once."""
        if adapter is None:
            return
        latest = self._sent.setdefault(replica, OrderedDict())
        latest[adapter] = None
        latest.move_to_end(adapter)
        if len(latest) > self._remembered:
            latest.popitem(last=False)

    def homes(self, adapter: str, replicas: Collection[str]) -> list[str]:
        """These replicas in the adapter's own order."""
        if self._replicas != set(replicas) or len(self._homes) > _MOST_HOMES:
            self._replicas = frozenset(replicas)
            self._homes.clear()
        if adapter not in self._homes:
            weights = {replica: self._weight(adapter, replica) for replica in replicas}
            self._homes[adapter] = sorted(weights, key=lambda one: (weights[one], one), reverse=True)
        return list(self._homes[adapter])

    def bound(self, loads: Mapping[str, int]) -> float:
        """The load above which a replica is too busy."""
        return self._spread * sum(loads.values()) / len(loads) + self._slack if loads else 0.0

    def _weight(self, adapter: str, replica: str) -> bytes:
        # Not hash(): that differs from process to process.
        return blake2b(f"{adapter}\0{replica}".encode(), digest_size=8, salt=self._salt).digest()
