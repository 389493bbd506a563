"""`km serve` as a real process, with the scripted engine in place of vLLM, and all that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

START_S = 120.0
STOP_S = 10.0


class Server:
    """One `km serve` and everything that it started.

    Its processes are found by a mark in their environments, which outlives their parents, and as its
    descendants, since Redis writes its title over its environment.
    """

    def __init__(self, folder: Path, model: Path, *options: str, **environment: str) -> None:
        self._mark = secrets.token_hex(8)
        self.data_dir = folder / "data"
        self.ready_file = folder / "ready.json"
        self.ready_file.unlink(missing_ok=True)  # of a server that was killed
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KM_") and k != "REDIS_URL"}
        own = {"KM_ENGINE": "scripted", "KM_EMBEDDER": "none", "KM_TEST_MARK": self._mark}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "server", "serve", "--port=0", f"--data-dir={self.data_dir}"),
                *(f"--base-model={model}", f"--ready-file={self.ready_file}", *options),
            ],
            env=inherited | own | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._seen: set[psutil.Process] = set()
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(stream)

    def until(self, condition: Callable[[], Any], within_s: float) -> Any:
        """What the condition returns once it is true."""
        self.family()
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {within_s} s; {self.out} {self.err}"
            time.sleep(0.05)
        return found

    def ready(self) -> dict[str, Any]:
        """What the ready file says, once it is there."""
        self.until(lambda: self.ready_file.exists() or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, f"ended: {self.out} {self.err}"
        self.family()
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready

    def family(self) -> list[psutil.Process]:
        """Every process that it started, itself included, that is not over."""
        self._seen.update(process for process in psutil.process_iter() if self._is_marked(process))
        for process in list(self._seen):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.update(process.children(recursive=True))
        return [process for process in self._seen if _runs(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("KM_TEST_MARK") == self._mark
        except psutil.Error:
            return False

    def worker(self) -> psutil.Process | None:
        """The worker, while there is one."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:] == ["-m", "trainer_worker"]:
                    return process
        return None

    def end(self, within_s: float = STOP_S) -> int:
        """The exit code, and all output in `out` and `err`."""
        code = self.process.wait(within_s)
        for reader in self._readers:
            reader.join()
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.family()
        self.process.send_signal(number)
        return self.end()

    def clean_up(self) -> None:
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.end()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
