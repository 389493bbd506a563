"""The worker as a child of the server: started again when it dies, stopped with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from km_registry.processes import dying_with_me

_log = structlog.get_logger(__name__)

#: A worker that ran this long, in seconds, is restarted at once again when it dies.
STEADY_S = 60.0
MAX_BACKOFF_S = 30.0


class WorkerProcess:
    """Keeps one worker process running until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        first_backoff_s: float = 1.0,
    ) -> None:
        self._command = list(command)
        # As it is now: while an engine is being started, vLLM's settings are in ours.
        self._environment = {**os.environ, **environment}
        self._log_path = log
        self._first_backoff_s = first_backoff_s
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process once. `run` keeps it running."""
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for us; we tell the worker in our order
                preexec_fn=dying_with_me(),
            )

    async def run(self) -> None:
        """Wait for the process and start it again, later each time, until `stop`."""
        backoff = self._first_backoff_s
        while not self._stopping.is_set():
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STEADY_S:
                backoff = self._first_backoff_s
            _log.error("worker died; restarting", code=code, seconds=backoff, log=str(self._log_path))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
                return
            backoff = min(2 * backoff, MAX_BACKOFF_S)
            await self.start()
            self.restarts += 1

    async def stop(self, grace_s: float = 4.0) -> None:
        """End it and whatever it started, by force after `grace_s` seconds. Idempotent."""
        self._stopping.set()
        if self._process is None or self._process.returncode is not None:
            return
        # Noted now: a job's child whose parent is gone can no longer be found.
        family = descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_s)
        await asyncio.to_thread(kill, [*family, *descendants(self._process.pid)])
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


class WorkerElsewhere(WorkerProcess):
    """In a worker's place where other machines train: nothing is started here."""

    def __init__(self) -> None:
        self._process = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    async def start(self) -> None:
        """Start nothing."""

    async def run(self) -> None:
        """Wait for `stop`."""
        await self._stopping.wait()

    async def stop(self, grace_s: float = 4.0) -> None:  # noqa: ARG002  there is nothing to end
        """End `run`."""
        self._stopping.set()


def descendants(pid: int) -> list[psutil.Process]:
    """Every process that descends from this one and still runs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """Kill those that are still the processes they were, and wait a moment until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=1.0)


def end_at_once(exit_code: int) -> None:
    """End without ceremony: every descendant is killed, then this process."""
    kill(descendants(os.getpid()))
    os._exit(exit_code)
