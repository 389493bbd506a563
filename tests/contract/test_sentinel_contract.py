"""Redis behind Sentinels: real servers on the loopback, and a failover under a queue and a follower."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from km_registry.events import MemoryNotifier, RedisNotifier, follow
from km_registry.jobs import QUEUE_NAME, RqJobQueue
from km_registry.redis_connection import open_async_redis, open_redis
from km_registry.registry import Registry
from km_registry.types import Job, JobState, Principal, Stage
from server.redis_private import RedisUnavailableError, check, find_executable
from tests.contract.support import FIRST

_PATIENCE_S = 30.0
executed: list[str] = []


def note(job_id: str) -> None:
    """What a worker does with a job here."""
    executed.append(job_id)


def job(name: str) -> Job:
    return Job(f"job_{name}", f"doc_{name}", JobState.QUEUED, 0, Stage.WAITING, 0, 0, datetime.now(UTC))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@dataclass(frozen=True)
class Watched:
    """A master, its replica, and the Sentinel that watches them."""

    url: str
    master: subprocess.Popen[bytes]
    sentinel: Redis

    def fail_over(self) -> None:
        """Kill the master, and wait until the replica has taken its place."""
        before = self.sentinel.sentinel_get_master_addr_by_name("km")  # type: ignore[no-untyped-call]
        self.master.kill()
        self.master.wait()
        deadline = time.monotonic() + _PATIENCE_S
        while self.sentinel.sentinel_get_master_addr_by_name("km") == before:  # type: ignore[no-untyped-call]
            assert time.monotonic() < deadline, "there is no new master"
            time.sleep(0.05)
        while True:
            try:
                return check(self.url)
            except RedisUnavailableError:
                assert time.monotonic() < deadline, "the new master does not answer"
                time.sleep(0.05)


@pytest.fixture
def database_url() -> None:
    """SQLite in the data directory."""


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    executable, ports = find_executable(), [free_port() for _ in range(3)]
    (tmp_path / "sentinel.conf").write_text(
        f"port {ports[2]}\nbind 127.0.0.1\nsentinel monitor km 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds km 300\nsentinel failover-timeout km 2000\n"
    )
    common = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0", "--dir", str(tmp_path)]
    commands = [
        [executable, "--port", str(ports[0]), *common],
        [executable, "--port", str(ports[1]), "--replicaof", "127.0.0.1", str(ports[0]), *common],
        [executable, str(tmp_path / "sentinel.conf"), "--sentinel"],
    ]
    with ExitStack() as stack:
        started = []
        for command, port in zip(commands, ports, strict=True):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
            answering(port)
        replicated(ports[1])
        with Redis(port=ports[2]) as sentinel:
            known(sentinel)
            yield Watched(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{ports[2]}/km/0", started[0], sentinel)


def answering(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)
        else:
            return


def replicated(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with Redis(port=port) as replica:
        while replica.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline, "the replica has no master"
            time.sleep(0.02)


def known(sentinel: Redis) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not sentinel.sentinel_slaves("km"):  # type: ignore[no-untyped-call]
        assert time.monotonic() < deadline, "Sentinel knows no replica"
        time.sleep(0.02)


async def test_after_a_failover_the_queue_and_the_events_go_on(
    watched: Watched, registry: Registry, owner: Principal, notifier: MemoryNotifier
) -> None:
    check(watched.url)
    document, first, _ = registry.add_document(owner, "n", FIRST)
    with open_redis(watched.url) as redis:
        queue = RqJobQueue(redis, function=f"{__name__}.{note.__name__}")
        queue.enqueue(job("before"))
        assert redis.wait(1, 5000) == 1, "the replica has it"
        bus = open_async_redis(watched.url)
        async with aclosing(follow(registry, bus, document.id)) as events:
            assert (await anext(events)).kind == "queued"
            waiting = asyncio.create_task(anext(events))
            await asyncio.to_thread(watched.fail_over)
            assert queue.waiting() == ["job_before"]
            queue.enqueue(job("after"))
            registry.cancel(owner, document.id)
            RedisNotifier(redis).notify(document.id, 0)
            event = await asyncio.wait_for(waiting, _PATIENCE_S)
            assert (event.kind, event.job_id) == ("cancelled", first.id)
        await bus.aclose()
        executed.clear()
        SimpleWorker(
            [Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)],
            connection=redis,
            serializer=JSONSerializer,
        ).work(burst=True, logging_level="ERROR")
        assert executed == ["job_before", "job_after"]
        assert queue.waiting() == []


def test_sentinels_that_are_not_there_are_said() -> None:
    with pytest.raises(RedisUnavailableError, match="master"):
        check("redis+sentinel://127.0.0.1:1/km")
