"""Files and directories: written whole or not at all, on the disk before they have their name, purged
without rest."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Write the file so that a crash leaves it whole or as it was; parents are made with mode 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def purge_dir(path: Path) -> int:
    """Remove the directory and all in it, if it is there; the number of bytes that its files held."""
    removed = 0
    while path.exists():
        # Somebody else may be removing it too: then files that were listed are gone already.
        with suppress(FileNotFoundError):
            removed = max(removed, _held(path))
            shutil.rmtree(path)
            fsync(path.parent)
    return removed


def _held(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


def purge_file(path: Path) -> int:
    """Remove the file, if it is there; the number of bytes that it held."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    fsync(path.parent)
    return size


def move_into_place(staged: Path, target: Path) -> Path:
    """Give a finished directory its final name, durably; the two lie in one file system. Returns `target`."""
    staged.rename(target)
    fsync(target.parent)
    return target


def fsync(path: Path) -> None:
    """Have the file's or directory's content on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
