"""The port to what keeps artifacts: texts, KMs, KEs, indexes of passages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Makes sure that a directory is what was recorded, or raises ArtifactError.
Check = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or a directory that is written once. `path` is where it lies on this machine; `key` names it in
    a store that machines share: all of a document's lie below the document's own key."""

    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed from a shared store."""

    objects: int
    size_bytes: int


class ArtifactStore(Protocol):
    """Keeps artifacts where all who serve and train can read them. Thread-safe.

    Every method but those that only read what is on this machine raises StoreUnavailableError while a shared
    store cannot be reached or refuses.
    """

    @property
    def is_shared(self) -> bool:
        """Whether other machines read from it, so that this machine's files are copies that may leave."""
        ...

    def write(self, artifact: Artifact, data: bytes) -> None:
        """Keep a file, whole or not at all."""
        ...

    def read(self, artifact: Artifact, sha256: str) -> bytes:
        """A file's content; FileNotFoundError when there is none, ArtifactError when it was altered."""
        ...

    def publish(self, artifact: Artifact, staged: Path) -> None:
        """Have other machines see the finished directory `staged`, which the caller then moves to the
        artifact's path. They see it whole or not at all."""
        ...

    def held(self, artifact: Artifact, check: Check) -> AbstractContextManager[Path]:
        """A directory, here for as long as the block runs. It is `check`ed when it comes from elsewhere, and
        kept only if that raises nothing. FileNotFoundError when there is none."""
        ...

    def manifest(self, artifact: Artifact) -> bytes:
        """A directory's manifest alone, unchecked. FileNotFoundError when there is none."""
        ...

    def copy(self, artifact: Artifact, target: Path) -> None:
        """Copy a directory to `target`, which is made, unchecked. FileNotFoundError when there is none."""
        ...

    def remove(self, artifact: Artifact) -> int:
        """Remove a file or directory here and wherever it is shared; its bytes. Idempotent."""
        ...

    def forget(self, key: str) -> Forgotten:
        """Remove all that is shared below the key, and make sure that it is gone. Idempotent."""
        ...
