"""The processes of an engine: which they are, and making sure that they end."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading

import psutil

logger = logging.getLogger(__name__)

_AFTER_TERM = 2.0
_AFTER_KILL = 2.0
#: vLLM's name, or the start of it, for the process that this server starts.
_ENGINE_CORE = "EngineCore"


def started_since(before: set[int | None]) -> list[psutil.Process]:
    """Processes that multiprocessing has started here and that were not among `before`."""
    started = []
    for child in multiprocessing.active_children():
        if child.pid not in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.append(psutil.Process(child.pid))
    return started


def with_descendants(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes and all that came from them."""
    family = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
    return family


def end(processes: list[psutil.Process], patience: float = 4.0) -> None:
    """Wait `patience` seconds for the processes to end by themselves, then make them within 4 more."""
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_AFTER_TERM)
    for process in alive:
        logger.warning("engine process %d did not end, killing it", process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_AFTER_KILL)


def end_with_parent() -> None:
    """In an engine's process: end it as soon as the server's is gone, however that ended. Elsewhere: nothing.

    vLLM leaves its engine behind when the server is killed.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(_ENGINE_CORE):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
