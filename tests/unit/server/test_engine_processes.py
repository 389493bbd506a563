"""An engine's processes end when they should."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection

import psutil
import pytest

from server.engine.engine_processes import end, end_with_parent, started_since, with_descendants

SPAWN = multiprocessing.get_context("spawn")


def engine(pipe: Connection) -> None:
    end_with_parent()
    pipe.send("up")
    threading.Event().wait()


def server(pipe: Connection, name: str) -> None:
    receive, send = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=engine, args=(send,), name=name)
    process.start()
    receive.recv()
    pipe.send(process.pid)
    threading.Event().wait()


def started(name: str) -> tuple[psutil.Process, psutil.Process]:
    receive, send = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=server, args=(send, name))
    process.start()
    assert receive.poll(60)
    return psutil.Process(process.pid), psutil.Process(receive.recv())


def test_an_engine_ends_with_a_killed_server() -> None:
    parent, child = started("EngineCore_DP0")
    parent.kill()
    assert not psutil.wait_procs([child], timeout=10)[1]


def test_other_processes_are_left_alone() -> None:
    parent, child = started("Another")
    parent.kill()
    with pytest.raises(psutil.TimeoutExpired):
        child.wait(0.5)
    child.kill()


def test_a_family_is_found_and_ended() -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    parent, child = started("Another")
    assert started_since(before) == [parent]
    assert {parent.pid, child.pid} <= {process.pid for process in with_descendants(started_since(before))}
    end(with_descendants([parent]), patience=0.0)
    assert not parent.is_running()
    assert not child.is_running()


def test_ending_nothing_takes_no_time() -> None:
    end([])
