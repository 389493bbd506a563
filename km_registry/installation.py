"""Which installation database, data directory and shared store are of, as a facade over the records."""

from __future__ import annotations

from km_registry.store import installation
from km_registry.store.store import Store


class Installation:
    """Tells those of two installations apart. Synchronous and thread-safe.

    Every method raises InstallationError, which says what to correct, when they do not belong together.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def take_home(self) -> str:
        """Compare, and mark, database and data directory; the directory's id. For a gateway that starts."""
        return installation.take_home(self._store)

    def check_home(self) -> None:
        """Compare database and data directory. For a worker that starts."""
        installation.check_home(self._store)

    def check_store(self) -> None:
        """Compare database and shared store, which is marked if it bears no mark; nothing without one.

        StoreUnavailableError while it is away.
        """
        installation.check_store(self._store)
