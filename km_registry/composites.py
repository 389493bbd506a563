"""Where composites lie: one directory for each pair of a KM and a KE, below the KM's, so that deleting either
finds all that was made of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from km_registry.compose import composite_name
from km_registry.files import purge_dir
from km_registry.types import KE, KM

#: In place of a KM, what holds the KEs that are served alone.
ALONE = "alone"


def composite_dir(root: Path, ke: KE, km: KM | None) -> Path:
    """Where the composite of the two lies, or of the KE alone, whether it is there or not."""
    name = composite_name(ke.digest, km.digest if km else None)
    return root / (km.id if km else ALONE) / f"{ke.id}.{name}"


def forget_kms(root: Path, km_ids: set[str]) -> tuple[int, int]:
    """Remove all composites of these KMs: how many, and their bytes."""
    count = sum(len(_below(root / km_id)) for km_id in km_ids)
    return count, sum(purge_dir(root / km_id) for km_id in km_ids)


def forget_ke(root: Path, ke_id: str) -> tuple[int, int]:
    """Remove all composites of the KE, and what was made to serve it alone: how many, and their bytes."""
    found = [path for of_km in _below(root) for path in _below(of_km) if path.name.startswith(f"{ke_id}.")]
    return _purged(found)


def all_composites(root: Path) -> list[Path]:
    """Every composite that is there, the one used longest ago first."""
    found = [path for of_km in _below(root) for path in _below(of_km)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def remove_unfinished(root: Path) -> None:
    """Remove what a composition that was killed left behind. Nothing may be composing."""
    for path in root.glob("*/.*"):
        purge_dir(path)


def remove(path: Path) -> int:
    """Remove one composite; its bytes."""
    return _purged([path])[1]


def _purged(paths: list[Path]) -> tuple[int, int]:
    removed = [purge_dir(path) for path in paths if path.is_dir()]
    for parent in {path.parent for path in paths}:
        # Unless another composite lies there, or is being made there just now.
        with contextlib.suppress(OSError):
            parent.rmdir()
    return len(removed), sum(removed)


def _below(directory: Path) -> list[Path]:
    """The directories in it, but those that are not finished."""
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
