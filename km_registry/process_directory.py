"""A directory for as long as its process lives. What a killed process left is removed by the next one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from km_registry.files import purge_dir


class ProcessDirectory:
    """A directory of this process's own below a parent that processes of this machine share.

    It is locked, so that whoever comes later sees who is gone.
    """

    def __init__(self, parent: Path, name: str) -> None:
        """Make it, and remove those whose processes have ended. FileExistsError when the name is in use."""
        self.path = parent / name
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Nobody finds one that is not locked yet.
        with _locked(parent):
            for other in list(parent.iterdir()):
                if _is_abandoned(other):
                    purge_dir(other)
            self.path.mkdir(mode=0o700)
            self._descriptor: int | None = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            purge_dir(self.path)
            os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return False  # its process ends just now
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
