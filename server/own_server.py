"""A server of a command's own, for as long as the command runs: `km demo` and `km eval` start one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from km_registry.errors import KMError
from km_registry.processes import dying_with_me
from server.memory import MemoryWatch

#: With a model that is compiled first, on a busy machine.
_START_TIMEOUT_S = 900.0
#: The server stops itself within ten seconds of being told to.
_STOP_TIMEOUT_S = 15.0
_SHOWN_LINES = 12
#: Where another server keeps its records and its queue. Empty rather than not set: a settings file that names
#: them is not heard either.
_NOT_OURS = {"KM_DATABASE_URL": "", "KM_REDIS_URL": "", "REDIS_URL": "", "KM_STORE_URL": ""}


class OwnServerError(KMError):
    """The server did not start."""


@dataclass(frozen=True, slots=True)
class OwnServer:
    """Where it listens; the admin key, which a data directory gives only at its first start; its memory."""

    url: str
    admin_key: str | None
    memory: MemoryWatch


@contextmanager
def own_server(
    data_dir: Path, *, log: Path | None = None, models: Path | None = None, options: Sequence[str] = ()
) -> Iterator[OwnServer]:
    """`km serve` on a free port with this data directory; stopped at the end. It ends with this process
    however that ends, and a terminal's Ctrl-C reaches only this process.

    What it says goes to our own output, or to `log`. It takes converted models from the directory `models`
    where one is given, so that it need not convert them anew. `options` are more of `km serve`.

    Raises:
        OwnServerError: it did not start; with a log, its last lines are in the message.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if models is not None and not (data_dir / "models").exists():
        (data_dir / "models").symlink_to(models.resolve(), target_is_directory=True)
    ready = data_dir / "ready.json"
    command = [sys.executable, "-m", "server", "serve", "--port=0", f"--data-dir={data_dir}", *options]
    command.append(f"--ready-file={ready}")
    # The file of a server that was killed would be taken for this one's.
    ready.unlink(missing_ok=True)
    environment = {**os.environ, **_NOT_OURS}
    with (
        _output(log) as output,
        subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=dying_with_me(),
        ) as process,
        MemoryWatch(process.pid) as memory,
    ):
        try:
            _await(process, ready, log)
            started = json.loads(ready.read_text())
            yield OwnServer(started["url"], started.get("admin_key"), memory)
        finally:
            _stop(process)


@contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    if log is None:
        yield None
        return
    # What it says holds the admin key.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _await(process: subprocess.Popen[bytes], ready: Path, log: Path | None) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            raise OwnServerError(f"the server did not start; {_said(log)}")
        if time.monotonic() > deadline:
            raise OwnServerError(f"the server was not ready within {_START_TIMEOUT_S:.0f} s; {_said(log)}")
        time.sleep(0.1)  # another process writes the file: there is nothing here to await


def _said(log: Path | None) -> str:
    if log is None:
        return "what it said stands above"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{log} ends with:\n" + "\n".join(lines[-_SHOWN_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
