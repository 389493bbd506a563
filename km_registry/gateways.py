"""Gateways that serve from one database, as a facade over the records."""

from __future__ import annotations

from collections.abc import Collection

from km_registry.fleet_types import Acknowledged, Beat, Evicted, Gateway, Standing, Unacknowledged
from km_registry.store import gateways
from km_registry.store.store import Store


class Gateways:
    """Which gateways live, and what each has let go of. Synchronous and thread-safe.

    Who is alive is decided by the database's clock alone.
    """

    #: How long a silent gateway is waited for, in seconds.
    live_s = gateways.LIVE.total_seconds()

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def may_have_others(self) -> bool:
        """Whether other gateways can reach the database: not when it lies in the data directory, which one
        gateway holds at a time."""
        return bool(self._store.settings.database_url)

    def join(self, gateway: Gateway) -> Beat:
        """Note that the gateway serves from here on, in place of one with the same data directory."""
        return gateways.join(self._store, gateway)

    def beat(self, gateway: Gateway) -> Beat:
        """Say that the gateway lives; every other second."""
        return gateways.beat(self._store, gateway)

    def leave(self, gateway_id: str) -> None:
        """Note that the gateway serves no more. Idempotent."""
        gateways.leave(self._store, gateway_id)

    def acknowledge(self, gateway_id: str, subjects: Collection[str], evicted: Evicted) -> None:
        """Keep the gateway's word that it has nothing of these any more. Idempotent."""
        gateways.acknowledge(self._store, gateway_id, subjects, evicted)

    def acknowledged(
        self, gateway_id: str, subjects: Collection[str], document_id: str | None = None
    ) -> Acknowledged:
        """Which gateways have let go of all of these, or of the document as a whole, and which others that
        live have not."""
        return gateways.acknowledged(self._store, gateway_id, subjects, document_id)

    def unacknowledged(self, gateway_id: str) -> Unacknowledged:
        """What is gone, is not purged yet, and the gateway has not let go of."""
        return gateways.unacknowledged(self._store, gateway_id)

    def standing(self, *, documents: Collection[str], kms: Collection[str], kes: Collection[str]) -> Standing:
        """Which of these nobody has deleted or superseded."""
        return gateways.standing(self._store, documents, kms, kes)

    def prune(self) -> None:
        """Forget acknowledgements and silent gateways of more than a day ago."""
        gateways.prune(self._store)
