"""What a backup says of itself: every file with its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from km_registry.artifacts import atomic_write
from km_registry.errors import ArtifactError

FORMAT = 1
MANIFEST = "backup.json"
RECORDS = "registry.sqlite3"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is whole: when it was made, and its files (by path below it) with SHA-256."""

    path: Path
    made_at: datetime
    files: dict[str, str]
    size_bytes: int

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        return len({name.split("/")[1] for name in self.files if name.startswith("documents/")})

    @property
    def kms(self) -> int:
        """How many KMs it holds."""
        return len({name.split("/")[1] for name in self.files if name.startswith("kms/")})


def seal(directory: Path) -> Backup:
    """Write the manifest of a directory that is complete."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {str(path.relative_to(directory)): _digest(path) for path in paths}
    backup = Backup(directory, datetime.now(UTC), files, sum(path.stat().st_size for path in paths))
    fields = {
        "format": FORMAT,
        "kind": "backup",
        "made_at": backup.made_at.isoformat(),
        "made_by": f"km-server {version('km-server')}",
        "size_bytes": backup.size_bytes,
        "files": files,
    }
    atomic_write(directory / MANIFEST, json.dumps(fields, indent=1).encode())
    return backup


def read(directory: Path) -> Backup:
    """The backup in a directory, every file of it verified. ArtifactError says what is wrong with it."""
    fields = _fields(directory)
    files: dict[str, str] = fields["files"]
    for name, sha256 in files.items():
        path = directory / name
        if not path.is_file() or path.is_symlink():
            raise ArtifactError(f"the backup lacks {name}; use another backup")
        if _digest(path) != sha256:
            raise ArtifactError(f"{name} of the backup was altered; use another backup")
    return Backup(directory, datetime.fromisoformat(fields["made_at"]), files, fields["size_bytes"])


def _fields(directory: Path) -> dict[str, Any]:
    try:
        fields = json.loads((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is no backup: it has no {MANIFEST}; name another") from None
    except ValueError:
        raise ArtifactError(f"{MANIFEST} of {directory} is not JSON; use another backup") from None
    if not isinstance(fields, dict) or (fields.get("format"), fields.get("kind")) != (FORMAT, "backup"):
        raise ArtifactError(f"{directory} is no backup of format {FORMAT}; restore it with the version of it")
    for name in fields["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"the backup names {name}, which is outside of it; use another backup")
    return fields


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
