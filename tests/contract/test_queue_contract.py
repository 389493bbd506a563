"""What every queue does, and what only RQ with a real worker on a real Redis can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis

from km_registry.jobs import QUEUE_NAME, JobQueue, MemoryJobQueue, RqJobQueue
from km_registry.types import Job, JobState, Stage
from tests.contract import rq_target

ROOT = Path(__file__).parents[2]


def job(name: str, attempt: int = 0) -> Job:
    now = datetime.now(UTC)
    return Job(f"job_{name}", f"doc_{name}", JobState.QUEUED, attempt, Stage.WAITING, 0, 0, now)


@pytest.fixture(params=["memory", "rq"])
def queue(request: pytest.FixtureRequest) -> JobQueue:
    if request.param == "memory":
        return MemoryJobQueue()
    return RqJobQueue(request.getfixturevalue("redis_server"))


def test_jobs_wait_in_order(queue: JobQueue) -> None:
    assert queue.waiting() == []
    for name in "abc":
        queue.enqueue(job(name))
    assert queue.waiting() == ["job_a", "job_b", "job_c"]


def test_enqueueing_twice_is_harmless(queue: JobQueue) -> None:
    queue.enqueue(job("a"))
    queue.enqueue(job("b"))
    queue.enqueue(job("a"))
    assert queue.waiting() == ["job_a", "job_b"]


def test_stopping_takes_a_job_out(queue: JobQueue) -> None:
    for name in ("a", "ab", "b"):
        queue.enqueue(job(name))
    queue.stop("job_a")
    assert queue.waiting() == ["job_ab", "job_b"]
    queue.enqueue(job("a"))
    assert queue.waiting() == ["job_ab", "job_b", "job_a"]


def test_stopping_the_unknown_is_harmless(queue: JobQueue) -> None:
    queue.enqueue(job("a"))
    queue.stop("job_unknown")
    assert queue.waiting() == ["job_a"]


def test_only_the_id_goes_through_redis(redis_server: Redis) -> None:
    RqJobQueue(redis_server).enqueue(job("a"))
    stored = redis_server.hgetall("rq:job:job_a-0")
    payload = json.loads(zlib.decompress(stored[b"data"]))
    assert payload == ["trainer_worker.worker.run_job", None, ["job_a"], {}]
    assert b"doc_a" not in b"".join(stored.values())
    assert stored[b"timeout"] == b"-1"


def test_stopping_leaves_nothing_in_redis(redis_server: Redis) -> None:
    queue = RqJobQueue(redis_server)
    queue.enqueue(job("a"))
    queue.stop("job_a")
    assert [key for key in redis_server.scan_iter() if b"job_a" in key] == []


@contextmanager
def worker(socket: Path, *, burst: bool) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rq.cli", "worker", QUEUE_NAME, "--url", f"unix://{socket}"]
    command += ["--serializer", "rq.serializers.JSONSerializer", *(["--burst"] if burst else [])]
    environment = {**os.environ, "TEST_REDIS_SOCKET": str(socket), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def queue_of(redis: Redis, function: Callable[[str], None]) -> RqJobQueue:
    return RqJobQueue(redis, function=f"{rq_target.__name__}.{function.__name__}")


def started(redis: Redis) -> str:
    popped = redis.blpop(["started"], timeout=30)
    assert popped is not None, "no worker started the job"
    return popped[1].decode()


def test_stopping_ends_a_running_child(redis_server: Redis, redis_socket: Path) -> None:
    queue = queue_of(redis_server, rq_target.report_and_block)
    queue.enqueue(job("a"))
    with worker(redis_socket, burst=True) as process:
        assert started(redis_server) == "job_a"
        assert queue.waiting() == []
        queue.stop("job_a")
        assert process.wait(30) == 0


def test_an_attempt_is_executed_once_and_forgotten(redis_server: Redis, redis_socket: Path) -> None:
    queue = queue_of(redis_server, rq_target.report)
    queue.enqueue(job("a"))
    queue.enqueue(job("a"))
    with worker(redis_socket, burst=True) as process:
        assert process.wait(30) == 0
    assert redis_server.lrange("started", 0, -1) == [b"job_a"]
    assert [key for key in redis_server.scan_iter() if b"job_a" in key] == []


def test_a_job_whose_child_died_can_be_enqueued_again(redis_server: Redis, redis_socket: Path) -> None:
    queue = queue_of(redis_server, rq_target.die)
    for _ in range(2):
        queue.enqueue(job("a"))
        assert queue.waiting() == ["job_a"]
        with worker(redis_socket, burst=True) as process:
            assert process.wait(30) == 0
    assert redis_server.llen("started") == 2
