"""To which engine replica a request goes: to where its adapter probably is, unless that replica is too busy.

Every adapter has an order of homes among the replicas, by rendezvous hashing (Thaler and Ravishankar, 1998):
the same in every process, and when a replica comes or goes only its own adapters move. A request goes

1. to a replica in whose slots its adapter is, as replicas tell or as this router remembers of what it sent;
2. else to one of the adapter's first homes, so that what is asked seldom stays in the memory of few;
3. else anywhere; each time to the least busy of them.

A replica that is much busier than the average comes last (Mirrokni, Thorup and Zadimoghaddam, "Consistent
Hashing with Bounded Loads", 2017): what is asked more than one replica can answer spills to another home.
With few requests in flight the average says little; as many as there are slots more are no reason to go away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from hashlib import blake2b

#: So many adapters for every slot of a replica: what was sent there may be in a slot, or else in memory.
_REMEMBERED = 4
#: Adapters whose homes are known without hashing.
_MOST_HOMES = 10_000
_NOT_TOLD: Mapping[str, Collection[str]] = {}


class Router:
    """Ranks replicas for a request. Every gateway has one of its own; they need not talk to each other."""

    def __init__(self, *, slots: int, spread: float = 1.25, choices: int = 3, seed: int = 0) -> None:
        """A router that has sent nothing yet.

        Args:
            slots: how many adapters a replica has in slots.
            spread: how many times as busy as the average a replica may be, and a request for each slot more.
            choices: from how many homes the least busy is taken for an adapter that is in no slot.
            seed: gateways with the same one agree on the homes.

        Raises:
            ValueError: no slot, no choice, or a spread below 1.
        """
        if slots < 1 or choices < 1:
            raise ValueError(f"{slots} slots and {choices} choices: give at least one of each")
        if not spread >= 1:
            raise ValueError(f"spread {spread}: some replica is as busy as the average, so give at least 1")
        self._slots = slots
        self._spread, self._choices = spread, choices
        self._salt = seed.to_bytes(8, "little", signed=True)
        #: By replica, what was sent there last; the latest is last.
        self._sent: dict[str, OrderedDict[str, None]] = {}
        self._homes: dict[str, list[str]] = {}
        self._replicas: frozenset[str] = frozenset()

    def rank(
        self,
        adapter: str | None,
        loads: Mapping[str, int],
        resident: Mapping[str, Collection[str]] = _NOT_TOLD,
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
        if len(latest) > _REMEMBERED * self._slots:
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
        return self._spread * sum(loads.values()) / len(loads) + self._slots if loads else 0.0

    def _weight(self, adapter: str, replica: str) -> bytes:
        # Not hash(): that differs from process to process.
        return blake2b(f"{adapter}\0{replica}".encode(), digest_size=8, salt=self._salt).digest()
