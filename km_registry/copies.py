"""KMs and KEs on a machine that reaches the shared store and has no records: that of an engine's replica."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from km_registry.artifact_store.cache import Cache
from km_registry.artifact_store.local import removed_here
from km_registry.artifact_store.objects import Objects
from km_registry.artifact_store.shared import SharedStore
from km_registry.artifacts import digest, verify, verify_ke
from km_registry.composites import forget_ke, forget_kms
from km_registry.errors import ArtifactError
from km_registry.store import holding
from km_registry.store.layout import Layout
from km_registry.types import KE, KM

One = TypeVar("One", KM, KE)


class Copies:
    """Copies in a directory that is this process's alone, together at most `max_bytes`. Thread-safe.

    They and what is made of them are had again when they are missed, so all of it may go at any time.
    """

    def __init__(self, directory: Path, store_url: str, max_bytes: int) -> None:
        """Nothing is reached yet."""
        self._layout = Layout(directory, shared=True)
        self._layout.create()
        self._store = SharedStore(Objects(store_url), Cache(self._layout, max_bytes))
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()

    @property
    def composites(self) -> Path:
        """Where composites of them are to lie."""
        return self._layout.composites

    def here(self, one: One) -> One:
        """The KM or KE, with the path that it has here."""
        return replace(one, path=str(holding.artifact_of(self._layout, one).path))

    @contextmanager
    def held(self, one: KM | KE) -> Iterator[Path]:
        """Its directory, for as long as the block runs: what its record says, fetched if need be.

        ArtifactError when it is damaged or not in the store, StoreUnavailableError when it is not here and
        the store is away.
        """
        self._count(one, 1)
        try:
            with holding.adapter(self._store, self._layout, one) as path:
                yield path
        finally:
            self._count(one, -1)

    def is_used(self, one: KM | KE) -> bool:
        """Whether anybody holds it, or is fetching it."""
        with self._lock:
            return bool(self._users[one.id])

    def is_stored(self, one: KM | KE) -> bool:
        """Whether the store has it: one that was deleted is not there any more. StoreUnavailableError."""
        return self._store.has(holding.artifact_of(self._layout, one))

    def remove(self, one: KM | KE) -> None:
        """Remove the copy, and the composites that were made of it. Idempotent."""
        if isinstance(one, KM):
            forget_kms(self._layout.composites, {one.id})
        else:
            forget_ke(self._layout.composites, one.id)
        removed_here(holding.artifact_of(self._layout, one).path)

    def remove_if_damaged(self, one: KM | KE) -> None:
        """Remove the copy if it is not what was recorded: then it is fetched anew."""
        path = holding.artifact_of(self._layout, one).path
        try:
            manifest = verify(path, tensors=False) if isinstance(one, KM) else verify_ke(path, tensors=False)
            intact = digest(manifest) == one.digest
        except (ArtifactError, FileNotFoundError):
            intact = False
        if not intact:
            removed_here(path)

    def _count(self, one: KM | KE, change: int) -> None:
        with self._lock:
            self._users[one.id] += change
            if not self._users[one.id]:
                del self._users[one.id]
