"""What every queue does, and what only RQ with a real worker on a real Redis can show."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from km_registry.jobs import QUEUE_NAME, JobQueue, MemoryJobQueue, RqJobQueue, queue_name
from km_registry.types import Job, JobState, Run, Stage
from tests.contract import rq_target

ROOT = Path(__file__).parents[2]


def job(name: str, attempt: int = 0, queue: str = "default") -> Job:
    now = datetime.now(UTC)
    one = Job(f"job_{name}", f"doc_{name}", JobState.QUEUED, attempt, Stage.WAITING, 0, 0, now)
    return replace(one, queue=queue)


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


def test_jobs_of_other_queues_wait_and_are_stopped_as_well(queue: JobQueue) -> None:
    queue.enqueue(job("a", queue="large-gpu"))
    queue.enqueue(job("b"))
    queue.enqueue(job("a", queue="large-gpu"))
    assert sorted(queue.waiting()) == ["job_a", "job_b"]
    queue.stop("job_a")
    assert queue.waiting() == ["job_b"]


def test_a_worker_takes_what_it_serves_and_is_seen(redis_server: Redis, redis_socket: Path) -> None:
    queue = queue_of(redis_server, rq_target.report_and_block)
    queue.enqueue(job("a"))
    queue.enqueue(job("b", queue="large-gpu"))
    assert queue.workers() == []
    with worker(redis_socket, queue_name("large-gpu"), burst=True) as process:
        assert started(redis_server) == "job_b"
        assert queue.waiting() == ["job_a"]
        (seen,) = queue.workers()
        assert (seen.queues, seen.run_id) == (("large-gpu",), "job_b-0")
        assert seen.host == socket.gethostname()
        queue.stop("job_b")
        assert process.wait(30) == 0
    assert queue.workers() == []


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


class TestAJobThatNoWorkerHasAnyMore:
    """A worker was killed after it took the job out of the queue, and before it claimed the job's row."""

    @staticmethod
    def taken(redis: Redis, queue: RqJobQueue) -> None:
        queue.enqueue(job("a"))
        rq = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
        assert Queue.dequeue_any([rq], None, connection=redis, serializer=JSONSerializer)
        assert queue.waiting() == []

    def test_is_enqueued_again(self, redis_server: Redis) -> None:
        queue = RqJobQueue(redis_server, claim_seconds=0)
        self.taken(redis_server, queue)
        queue.enqueue(job("a"))
        queue.enqueue(job("a"))
        assert queue.waiting() == ["job_a"]

    def test_leaves_nothing_of_its_own_behind(self, redis_server: Redis) -> None:
        queue = RqJobQueue(redis_server, claim_seconds=0)
        self.taken(redis_server, queue)
        queue.enqueue(job("a"))
        queue.enqueue(job("a"))
        queue.stop("job_a")
        assert [key for key in redis_server.scan_iter() if b"job_a" in key] == []
        assert redis_server.llen(f"rq:queue:{QUEUE_NAME}:intermediate") == 0

    def test_is_left_alone_while_a_worker_may_be_about_to_claim_it(self, redis_server: Redis) -> None:
        queue = RqJobQueue(redis_server)
        self.taken(redis_server, queue)
        queue.enqueue(job("a"))
        queue.enqueue(job("a"))
        assert queue.waiting() == []

    def test_has_its_time_anew_whenever_it_is_taken(self, redis_server: Redis) -> None:
        queue = RqJobQueue(redis_server, claim_seconds=0)
        self.taken(redis_server, queue)
        queue.enqueue(job("a"))
        redis_server.lpush(f"rq:queue:{QUEUE_NAME}", "job_a-0")
        queue.enqueue(job("a"))
        redis_server.lpop(f"rq:queue:{QUEUE_NAME}")
        queue.enqueue(job("a"))
        assert queue.waiting() == []


def test_stopping_leaves_nothing_in_redis(redis_server: Redis) -> None:
    queue = RqJobQueue(redis_server)
    queue.enqueue(job("a"))
    queue.stop("job_a")
    assert [key for key in redis_server.scan_iter() if b"job_a" in key] == []


@contextmanager
def worker(path: Path, name: str = QUEUE_NAME, *, burst: bool) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rq.cli", "worker", name, "--url", f"unix://{path}"]
    command += ["--serializer", "rq.serializers.JSONSerializer", *(["--burst"] if burst else [])]
    environment = {**os.environ, "TEST_REDIS_SOCKET": str(path), "PYTHONPATH": str(ROOT)}
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


class OneRun:
    """A registry in which one run holds jobs, until it is asked so many times."""

    def __init__(self, run_id: str, *job_ids: str, lets_go_after: int | None = None) -> None:
        self._run = Run(run_id, job_ids)
        self._left = lets_go_after

    def run_of(self, job_id: str) -> Run | None:
        if self._left is not None:
            self._left -= 1
        return None if self._left is not None and self._left < 0 else self._run


@pytest.mark.parametrize(
    ("runs", "ends"),
    [
        (OneRun("job_a-0", "job_a"), True),
        # It goes on with b, which its worker took from the registry.
        (OneRun("job_a-0", "job_a", "job_b", lets_go_after=2), False),
        (OneRun("job_a-0", "job_a", "job_b"), True),
        # Started for a, which it is through with.
        (OneRun("job_a-0", lets_go_after=0), False),
    ],
    ids=["alone", "lets go", "does not", "ended"],
)
def test_a_child_is_ended_only_if_it_does_not_let_go(
    redis_server: Redis, redis_socket: Path, runs: OneRun, ends: bool
) -> None:
    queue_of(redis_server, rq_target.report_and_block).enqueue(job("a"))
    with worker(redis_socket, burst=True):
        assert started(redis_server) == "job_a"
        running = StartedJobRegistry(QUEUE_NAME, connection=redis_server, serializer=JSONSerializer)
        began = time.monotonic()
        RqJobQueue(redis_server, runs).stop("job_a")
        assert (running.get_job_ids(cleanup=False) == []) is ends
        assert time.monotonic() - began < 2
        RqJobQueue(redis_server).stop("job_a")


def test_a_run_is_ended_by_its_own_name(redis_server: Redis, redis_socket: Path) -> None:
    queue_of(redis_server, rq_target.report_and_block).enqueue(job("a"))
    with worker(redis_socket, burst=True) as process:
        assert started(redis_server) == "job_a"
        RqJobQueue(redis_server, OneRun("job_a-0", "job_b")).stop("job_b")
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
