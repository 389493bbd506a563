"""An object store under a URL, by `obstore`: S3, GCS, Azure, or a directory that machines mount.

Credentials, regions and endpoints come from the variables that each provider's own tools read.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import structlog

from km_registry.errors import StoreUnavailableError

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ObjectStore

_log = structlog.get_logger(__name__)

#: An object may take minutes; a store that says nothing for this long is away.
_CLIENT: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "15s", "timeout": "10m"}
_RETRY: dict[str, Any] = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
_AT_ONCE = 8 * 2**20
#: How a mounted directory names what is being written; its own lists leave that out.
_UNFINISHED = re.compile(r"#\d+$")


class Objects:
    """The objects below a URL. Thread-safe. Opened when first used: its threads do not survive a fork, and
    workers fork before they use it."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        #: Where it is mounted, if it is a directory.
        self._directory = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._lock = threading.Lock()
        self._opened: ObjectStore | None = None

    def put(self, key: str, content: bytes | Path) -> None:
        """Keep an object, whole or not at all, in place of the one so far."""
        import obstore

        with _told("write"):
            # In one request, never in parts: those of one that was cut short would stay.
            obstore.put(self._store(), key, content, use_multipart=False)

    def get(self, key: str) -> bytes:
        """The object; FileNotFoundError when there is none."""
        with _told("read"):
            return bytes(self._found(key).bytes())

    def has(self, key: str) -> bool:
        """Whether there is such an object."""
        import obstore

        try:
            with _told("read"):
                obstore.head(self._store(), key)
        except FileNotFoundError:
            self._require_container()
            return False
        return True

    def download(self, key: str, target: Path) -> None:
        """Write the object into a new file; FileNotFoundError when there is none."""
        with _told("read"):
            chunks = self._found(key).stream(min_chunk_size=_AT_ONCE)
        with target.open("xb") as file:
            while True:
                with _told("read"):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                file.write(chunk)

    def _found(self, key: str) -> GetResult:
        import obstore

        try:
            return obstore.get(self._store(), key)
        except FileNotFoundError:
            self._require_container()
            raise

    def below(self, prefix: str, *, unfinished: bool = False) -> dict[str, int]:
        """The keys below one, each with its size in bytes. With `unfinished` also what is being written, or
        was when its writer was killed."""
        import obstore

        with _told("list"):
            chunks = obstore.list(self._store(), prefix)
            found = {one["path"]: one["size"] for chunk in chunks for one in chunk}
            return found | self._unfinished(prefix) if unfinished else found

    def names(self, prefix: str) -> list[str]:
        """The next parts of the keys below one, each once."""
        import obstore

        with _told("list"):
            found = obstore.list_with_delimiter(self._store(), prefix)
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects that are there."""
        import obstore

        for key in keys:
            # One by one: some stores stop a list at the first that is gone already.
            with suppress(FileNotFoundError), _told("delete"):
                if self._directory is not None and _UNFINISHED.search(key):
                    _unlink(self._directory / key, self._directory)
                else:
                    obstore.delete(self._store(), key)

    def _unfinished(self, prefix: str) -> dict[str, int]:
        if self._directory is None:
            return {}  # what is not whole is nowhere
        found = {}
        # Directories that go meanwhile are passed by.
        for directory, _, names in os.walk(self._directory / prefix):
            for path in (Path(directory, name) for name in names if _UNFINISHED.search(name)):
                with suppress(FileNotFoundError):
                    found[str(path.relative_to(self._directory))] = path.stat().st_size
        return found

    def _require_container(self) -> None:
        """A bucket that is not there says the same as an object that is not there, but for its lists."""
        import obstore

        with _told("list"):
            next(iter(obstore.list(self._store(), chunk_size=1)), None)

    def _store(self) -> ObjectStore:
        with self._lock:
            if self._opened is None:
                self._opened = _open(self._url)
            return self._opened


def _open(url: str) -> ObjectStore:
    from obstore.store import LocalStore, from_url

    parts = urlsplit(url)
    if parts.scheme == "file":
        # Not made: a share that is not mounted must not be taken for an empty one.
        return LocalStore(unquote(parts.path), automatic_cleanup=True)
    # Options given here take the place of all that the environment says, this one too.
    plain = {"s3": "AWS_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}.get(parts.scheme, "")
    options = _CLIENT | {"allow_http": os.environ.get(plain, "").lower() in ("1", "true", "yes")}
    opened: ObjectStore = from_url(url, client_options=options, retry_config=_RETRY)  # type: ignore[call-overload]
    return opened


def _unlink(path: Path, root: Path) -> None:
    """Remove the file, and the directories above it that are empty then."""
    path.unlink()
    for parent in list(path.relative_to(root).parents)[:-1]:
        try:
            (root / parent).rmdir()
        except OSError:
            return  # another file is in it


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the store says is for the log; whoever asked is told what that means. FileNotFoundError passes."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as error:
        if what in ("read", "delete"):
            raise
        # What is written needs no object, but a bucket.
        _log.warning("the store of artifacts refused", what=what, reason=_first_line(error))
        raise StoreUnavailableError(
            f"The store of artifacts cannot {what}: there is no such bucket or directory. "
            "Correct KM_STORE_URL."
        ) from error
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        _log.warning("the store of artifacts refused", what=what, reason=_first_line(error))
        raise StoreUnavailableError(
            f"The store of artifacts does not let this server {what}. Correct its credentials or rights."
        ) from error
    except (BaseError, OSError, ValueError) as error:
        _log.warning("the store of artifacts failed", what=what, reason=_first_line(error))
        raise StoreUnavailableError(f"The store of artifacts cannot {what} now. Try again later.") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
