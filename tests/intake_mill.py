"""The parsing child without its start: parsers are imported once, and each file is read in a fork of its own
that binds itself as the real child does. Hundreds of files a minute, each with what it took.

    with Mill(limits) as mill:
        outcome = mill.read(data, Media.PDF)
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import IO, Any, Self

from server.intake.limits import IntakeLimits
from server.intake.media import Media

_SIZE = struct.Struct("Q")


@dataclass(frozen=True)
class Outcome:
    """What the child said (None: it died without a word), how it ended, and what it took."""

    said: dict[str, str] | None
    code: int
    peak_bytes: int
    cpu_seconds: float


class Mill:
    """A process that forks for every file."""

    def __init__(self, limits: IntakeLimits) -> None:
        self._limits = limits

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.intake_mill", json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_raised: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def read(self, data: bytes, media: Media) -> Outcome:
        """Have the file read."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, (data, str(media)))
        return Outcome(*_received(self._process.stdout))


def _send(pipe: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    pipe.write(_SIZE.pack(len(data)) + data)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Any:
    head = pipe.read(_SIZE.size)
    if not head:
        return None
    return pickle.loads(pipe.read(_SIZE.unpack(head)[0]))


def _parse(data: bytes, media: str, limits: IntakeLimits, said: int) -> None:
    from server.intake import child

    child._bound_ourselves(limits)
    answer = json.dumps(child._answer(data, Media(media), limits)).encode()
    while answer:
        answer = answer[os.write(said, answer) :]


def _forked(data: bytes, media: str, limits: IntakeLimits) -> tuple[Any, int, int, float]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _parse(data, media, limits, writing)
        finally:
            os._exit(0)
    os.close(writing)
    said, deadline = bytearray(), time.monotonic() + 3 * limits.seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(reading, 1 << 16) if ready else b""
        if not piece:
            break
        said += piece
    os.close(reading)
    if time.monotonic() >= deadline:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    answer = json.loads(said) if said.endswith(b"}") else None
    code = os.waitstatus_to_exitcode(status)
    return answer, code, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


def main() -> None:
    """Fork for every file that comes in."""
    import mammoth  # noqa: F401
    import pypdf  # noqa: F401
    import trafilatura  # noqa: F401
    from markdownify import markdownify  # noqa: F401

    import server.intake.child
    import server.intake.parsers  # noqa: F401

    limits = IntakeLimits(**json.loads(sys.argv[1]))
    while (asked := _received(sys.stdin.buffer)) is not None:
        _send(sys.stdout.buffer, _forked(*asked, limits))


if __name__ == "__main__":
    main()
