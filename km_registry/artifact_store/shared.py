"""Artifacts in an object store that several machines share, with copies on this machine."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from km_registry.artifact_store.base import Artifact, Check, Forgotten
from km_registry.artifact_store.cache import Cache, placed
from km_registry.artifact_store.local import removed_here
from km_registry.artifact_store.objects import Objects
from km_registry.artifacts import MANIFEST
from km_registry.errors import ArtifactError, StoreUnavailableError
from km_registry.files import atomic_write, purge_dir

#: Artifacts that one process fetches at a time.
_LOCKS = 64


class SharedStore:
    """Implements ArtifactStore. What is here came from the store or went to it first, so that all of it may
    leave."""

    def __init__(self, objects: Objects, cache: Cache) -> None:
        self.objects = objects
        self.cache = cache
        self._fetching = tuple(threading.Lock() for _ in range(_LOCKS))

    @property
    def is_shared(self) -> bool:
        """See ArtifactStore."""
        return True

    def write(self, artifact: Artifact, data: bytes) -> None:
        """See ArtifactStore."""
        self.objects.put(artifact.key, data)
        atomic_write(artifact.path, data)
        self.cache.make_room(keep=artifact.path)

    def read(self, artifact: Artifact, sha256: str) -> bytes:
        """See ArtifactStore."""
        with suppress(FileNotFoundError):
            data = artifact.path.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                _note_use(artifact.path)
                return data
        data = self.objects.get(artifact.key)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactError(f"{artifact.path.name} was altered in the store")
        # A copy is a help, not a need: another thread may be making room in this very directory.
        with suppress(FileNotFoundError):
            atomic_write(artifact.path, data)
            self.cache.make_room(keep=artifact.path)
        return data

    def publish(self, artifact: Artifact, staged: Path) -> None:
        """See ArtifactStore. The manifest comes last: without one there is nothing."""
        files = sorted(staged.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        try:
            for file in files:
                self.objects.put(f"{artifact.key}/{file.name}", file)
        except BaseException:
            with suppress(StoreUnavailableError):
                self._remove_shared(artifact.key)
            raise

    @contextmanager
    def held(self, artifact: Artifact, check: Check) -> Iterator[Path]:
        """See ArtifactStore."""
        while True:
            with self.cache.using(artifact.path) as is_here:
                if is_here:
                    _note_use(artifact.path)
                    yield artifact.path
                    return
            self._fetch(artifact, check)

    def manifest(self, artifact: Artifact) -> bytes:
        """See ArtifactStore."""
        with suppress(FileNotFoundError):
            return (artifact.path / MANIFEST).read_bytes()
        return self.objects.get(f"{artifact.key}/{MANIFEST}")

    def has(self, artifact: Artifact) -> bool:
        """Whether the shared store has the directory."""
        return self.objects.has(f"{artifact.key}/{MANIFEST}")

    def copy(self, artifact: Artifact, target: Path) -> None:
        """See ArtifactStore."""
        # First of all: without a manifest there is nothing, whatever else lies there.
        manifest = self.objects.get(f"{artifact.key}/{MANIFEST}")
        target.mkdir(mode=0o700)
        for key in self.objects.below(artifact.key):
            name = key.rpartition("/")[2]
            if name != MANIFEST:
                self.objects.download(key, target / name)
        (target / MANIFEST).write_bytes(manifest)

    def remove(self, artifact: Artifact) -> int:
        """See ArtifactStore."""
        shared = self._remove_shared(artifact.key)
        return max(removed_here(artifact.path), shared.size_bytes)

    def forget(self, key: str) -> Forgotten:
        """See ArtifactStore."""
        removed = self._remove_shared(key)
        if left := self.objects.below(key, unfinished=True):
            raise StoreUnavailableError(
                f"The store of artifacts still has {len(left)} objects that were removed."
            )
        return removed

    def _remove_shared(self, key: str) -> Forgotten:
        found = self.objects.below(key, unfinished=True)
        # The manifest first: from then on nobody begins to read what is half gone.
        self.objects.delete(sorted(found, key=lambda one: not one.endswith(f"/{MANIFEST}")))
        if not found:
            # A single file has no keys below its own.
            self.objects.delete([key])
        return Forgotten(len(found), sum(found.values()))

    def _fetch(self, artifact: Artifact, check: Check) -> None:
        """Copy it here, once for all who want it; what is damaged is not kept."""
        with self._fetching[hash(artifact.path) % _LOCKS]:
            if artifact.path.exists():
                return
            staged = self.cache.staging(artifact.path)
            try:
                self.copy(artifact, staged)
                check(staged)
                placed(staged, artifact.path)
            finally:
                purge_dir(staged)
            self.cache.make_room(keep=artifact.path)


def _note_use(path: Path) -> None:
    # Whoever deletes the document need not wait for us.
    with suppress(FileNotFoundError):
        os.utime(path)
