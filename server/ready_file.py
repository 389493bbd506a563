"""The file by which scripts learn that the server is ready, where it is, and the first admin key."""

from __future__ import annotations

import json
import os
from pathlib import Path

from server.startup import ServeError


def prepare(path: Path) -> None:
    """Remove the file of a run that was killed, and find out now whether ours can be written.

    Raises:
        ServeError: it cannot.
    """
    try:
        path.unlink(missing_ok=True)
        _temporary(path).touch(mode=0o600)
        _temporary(path).unlink()
    except OSError as error:
        raise ServeError(
            f"The ready file {path} cannot be written ({error.strerror}). Correct --ready-file."
        ) from error


def write(path: Path, *, url: str, admin_key: str | None) -> None:
    """Write {url, pid, admin_key?} with mode 0600, whole or not at all."""
    ready: dict[str, str | int] = {"url": url, "pid": os.getpid()}
    if admin_key:
        ready["admin_key"] = admin_key
    descriptor = os.open(_temporary(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(ready, file)
    _temporary(path).replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
