"""What must be had before anything is started: the data directory for us alone, and the port."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from km_registry.errors import KMError


class ServeError(KMError):
    """The server cannot start; the message says what to change."""


class StoppedError(Exception):
    """The server was stopped before it was ready."""


@contextmanager
def data_directory(path: Path) -> Iterator[Path]:
    """Hold the data directory, made with mode 0700 when new, so that no second server uses it.

    Raises:
        ServeError: it is not writable, or another running server has it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        lock = (path / "server.lock").open("a+")
    except OSError as error:
        raise ServeError(
            f"The data directory {path} is not writable ({error.strerror}). "
            "Choose another with --data-dir or KM_DATA_DIR, or correct its owner and mode."
        ) from error
    with lock:
        _take(lock.fileno(), path)
        yield path.resolve()


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise ServeError(
            f"The data directory {path} is in use by another KM Server (process {owner}). "
            "Stop that one, or choose another directory with --data-dir."
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Clients wait in its queue until somebody accepts.

    Raises:
        ServeError: the port is taken or not allowed, or the host is no address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise ServeError(f"The host {host!r} is not known ({error.strerror}). Correct --host.") from error
    except OSError as error:
        raise ServeError(_bind_problem(host, port, error)) from error
    # Connections inherit it. asyncio sets it on those of its own sockets only, and without it the body of an
    # answer, sent after its head, waits up to 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _bind_problem(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is taken. Stop what listens there, "
                "or choose another with --port (0 takes a free one)."
            )
        case errno.EACCES:
            return f"Port {port} is not allowed for this user. Choose one from 1024 up with --port."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine. Correct --host."
        case _:
            return f"Cannot listen on {host} port {port} ({error.strerror}). Correct --host or --port."


def url_of(listener: socket.socket) -> str:
    """An address under which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  read, not bound
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
