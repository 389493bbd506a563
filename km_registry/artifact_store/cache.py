"""Copies of what lies in a shared store, within a bound: those used longest ago leave, never one in use.

Whoever uses a directory holds a shared lock on it, whoever removes one an exclusive lock, so that all
processes of this machine see each other. Each copy can be had again, so none is missed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from km_registry.artifact_store.local import removed_here
from km_registry.files import purge_dir
from km_registry.store.layout import Layout

#: No copy takes so long.
_ABANDONED_S = 3600.0


class Cache:
    """The copies in the directories of a layout, together at most `max_bytes`. Thread-safe."""

    def __init__(self, layout: Layout, max_bytes: int) -> None:
        self._layout = layout
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[Path, int] = {}

    @contextmanager
    def using(self, path: Path) -> Iterator[bool]:
        """Within it the directory stays, if it is there; whether it is."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield _is_still(path, descriptor)
        finally:
            os.close(descriptor)

    def staging(self, path: Path) -> Path:
        """A name beside `path` for what is not finished; nobody takes it for a copy."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def make_room(self, *, keep: Path | None = None) -> None:
        """Remove what was used longest ago until all is within the bound, but nothing in use, nor `keep`."""
        with self._lock:
            copies = [(used, path, self._size(path)) for path, used in self._copies()]
            self._sizes = {path: size for _, path, size in copies}
            over = sum(size for _, _, size in copies) - self._max_bytes
            for _, path, size in sorted(copies):
                if over <= 0:
                    return
                if path != keep and self._left(path):
                    over -= size

    @property
    def size_bytes(self) -> int:
        """What all copies take."""
        with self._lock:
            return sum(self._size(path) for path, _ in self._copies())

    def _copies(self) -> Iterator[tuple[Path, float]]:
        """Every finished copy, and when it was used last."""
        layout = self._layout
        for pattern in (
            layout.kms.glob("km_*"),
            layout.kes.glob("ke_*"),
            layout.passages.glob("doc_*/[!.]*"),
        ):
            yield from _with_time(pattern)
        yield from _with_time(layout.documents.glob("doc_*/text*"))

    def _size(self, path: Path) -> int:
        # A copy never changes, so that its files are looked at once.
        known = self._sizes.get(path)
        if known is not None:
            return known
        try:
            return _bytes(path)
        except FileNotFoundError:
            return 0  # it left meanwhile

    def _left(self, path: Path) -> bool:
        """Remove it unless it is in use; whether it has gone."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        gone = self.staging(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.rename(gone)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        finally:
            os.close(descriptor)
        removed_here(gone)
        if path.parent not in (self._layout.kms, self._layout.kes):
            # The document's own directory, unless it holds something else.
            with suppress(OSError):
                path.parent.rmdir()
        return True


def clear_unfinished(layout: Layout) -> None:
    """Remove what copying or leaving that was cut short left, once nobody can be at it any more."""
    for directory in (layout.kms, layout.kes, layout.passages, layout.documents):
        for path, made in _with_time(iter([*directory.glob(".*"), *directory.glob("*/.*.*")])):
            if time.time() - made > _ABANDONED_S:
                removed_here(path)


def placed(staged: Path, path: Path) -> None:
    """Give a finished copy its name; one that is there already is as good. No need to survive a crash of the
    machine: it can be had again."""
    try:
        staged.rename(path)
    except OSError:
        if not path.exists():
            raise
        purge_dir(staged)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names what was opened: it may have left while we waited for it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _with_time(paths: Iterator[Path]) -> Iterator[tuple[Path, float]]:
    for path in paths:
        with suppress(FileNotFoundError):
            yield path, path.stat().st_mtime


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in os.scandir(path))
