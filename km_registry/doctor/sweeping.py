"""What lies on this machine of what another one deleted."""

from __future__ import annotations

from pathlib import Path

from km_registry.artifact_store.local import removed_here
from km_registry.doctor.orphans import of_nothing
from km_registry.store.store import Store


class Sweeper:
    """Removes copies and work of documents that are gone, where machines share a store.

    What belongs to nothing at two looks in a row is gone: a file may be there a moment before its row is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._before: set[Path] = set()

    def sweep(self) -> int:
        """Look once; how many files and directories were removed."""
        if not self._store.artifacts.is_shared:
            return 0
        found = {path for path in of_nothing(self._store) if not path.name.startswith(".")}
        gone = found & self._before
        for path in gone:
            removed_here(path)
        self._before = found - gone
        return len(gone)
