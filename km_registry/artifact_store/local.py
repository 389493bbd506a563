"""Artifacts in the data directory alone: what lies at its path is all there is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from km_registry.artifact_store.base import Artifact, Check, Forgotten
from km_registry.artifacts import MANIFEST
from km_registry.errors import ArtifactError
from km_registry.files import atomic_write, purge_dir, purge_file


class DataDirectory:
    """Implements ArtifactStore for one machine, or several that share the data directory."""

    @property
    def is_shared(self) -> bool:
        """See ArtifactStore."""
        return False

    def write(self, artifact: Artifact, data: bytes) -> None:
        """See ArtifactStore."""
        atomic_write(artifact.path, data)

    def read(self, artifact: Artifact, sha256: str) -> bytes:
        """See ArtifactStore."""
        data = artifact.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactError(f"{artifact.path.name} was altered")
        return data

    def publish(self, artifact: Artifact, staged: Path) -> None:
        """Nothing: it is seen once it is moved into its place."""

    @contextmanager
    def held(self, artifact: Artifact, check: Check) -> Iterator[Path]:  # noqa: ARG002  it was checked when it came
        """See ArtifactStore."""
        yield artifact.path

    def manifest(self, artifact: Artifact) -> bytes:
        """See ArtifactStore."""
        return (artifact.path / MANIFEST).read_bytes()

    def copy(self, artifact: Artifact, target: Path) -> None:
        """See ArtifactStore."""
        shutil.copytree(artifact.path, target)

    def remove(self, artifact: Artifact) -> int:
        """See ArtifactStore."""
        return removed_here(artifact.path)

    def forget(self, key: str) -> Forgotten:  # noqa: ARG002  nothing is shared
        """See ArtifactStore."""
        return Forgotten(0, 0)


def removed_here(path: Path) -> int:
    """Remove a file or directory; its bytes."""
    return purge_dir(path) if path.is_dir() and not path.is_symlink() else purge_file(path)
