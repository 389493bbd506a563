"""The worker as a child: restarted when it dies, stopped with all it started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from server.worker_process import WorkerElsewhere, WorkerProcess

#: Says its pid and its child's, then waits; on SIGTERM ends at once, as a worker does.
WORKER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.environ["WHO"], os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WORKER


def worker(tmp_path: Path, code: str = WORKER) -> WorkerProcess:
    command = [sys.executable, "-c", code]
    return WorkerProcess(command, {"WHO": "worker"}, tmp_path / "worker.log", first_backoff_s=0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  another process cannot set an event
            await asyncio.sleep(0.02)


async def lines(tmp_path: Path, count: int) -> list[list[str]]:
    """The first lines of the log, once they are there."""
    log = tmp_path / "worker.log"
    await until(lambda: log.read_text().count("\n") >= count)
    return [line.split() for line in log.read_text().splitlines()]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_stop_ends_it_and_what_it_started(tmp_path: Path) -> None:
    process = worker(tmp_path)
    await process.start()
    ((who, pid, child),) = await lines(tmp_path, 1)

    await process.stop()
    await process.stop()

    assert who == "worker"
    assert process.pid is None
    assert not alive(int(pid))
    assert not alive(int(child))


async def test_stop_kills_one_that_does_not_listen(tmp_path: Path) -> None:
    process = worker(tmp_path, DEAF)
    await process.start()
    ((_, pid, child),) = await lines(tmp_path, 1)

    await process.stop(grace_s=0.05)

    assert not alive(int(pid))
    assert not alive(int(child))


async def test_a_dead_one_is_started_again(tmp_path: Path) -> None:
    process = worker(tmp_path)
    await process.start()
    running = asyncio.create_task(process.run())
    first = (await lines(tmp_path, 1))[0]

    os.kill(int(first[1]), signal.SIGKILL)
    second = (await lines(tmp_path, 2))[1]

    assert second[1] != first[1]
    assert process.restarts == 1
    await process.stop()
    await running
    assert not alive(int(second[1]))
    os.kill(int(first[2]), signal.SIGKILL)  # the child of the first: its own parent is to see to that


async def test_stopping_while_waiting_to_restart(tmp_path: Path) -> None:
    process = WorkerProcess([sys.executable, "-c", ""], {}, tmp_path / "worker.log", first_backoff_s=600)
    await process.start()
    running = asyncio.create_task(process.run())
    await until(lambda: process.pid is None)

    await process.stop()
    await asyncio.wait_for(running, 10)

    assert process.restarts == 0


def test_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from server.worker_process import WorkerElsewhere, WorkerProcess\n"
        "async def main():\n"
        "    worker = WorkerProcess(['sleep', '600'], {}, pathlib.Path(sys.argv[1]) / 'log')\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await worker.run()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()

    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child] or child.status() == psutil.STATUS_ZOMBIE


async def test_where_others_train_nothing_is_started() -> None:
    worker = WorkerElsewhere()
    await worker.start()
    running = asyncio.create_task(worker.run())
    assert (worker.pid, worker.restarts) == (None, 0)
    await worker.stop()
    await asyncio.wait_for(running, 1)
