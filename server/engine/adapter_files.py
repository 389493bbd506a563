"""What is looked at of an adapter's files whenever the engine loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from km_registry import artifacts
from km_registry.compose import verify_composite


def verifier(composites: Path, *, base_fingerprint: str, max_rank: int) -> Callable[[Path], None]:
    """A check that the files in a KM's or a composite's directory are what was written: ArtifactError.

    `composites` is where composites lie; what lies elsewhere is a KM, and must be for the base model and of
    at most this rank. The numbers in the files are looked at by the engine, which reads them anyway.
    """

    def verify(directory: Path) -> None:
        if directory.is_relative_to(composites):
            verify_composite(directory)
        else:
            artifacts.verify(directory, base_fingerprint=base_fingerprint, max_rank=max_rank, tensors=False)

    return verify
