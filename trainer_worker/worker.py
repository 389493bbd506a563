"""Runs jobs from the queue: claim, heartbeat, finish. Knows nothing of training.

RQ forks a child for every job, so a crash or an out-of-memory kill there takes no worker down. The child
claims the job row; whatever it writes afterwards carries its attempt number and is refused once the
attempt no longer owns the job.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from redis import Redis
from rq import Queue, Worker
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from km_registry.errors import KMError, NotFoundError, StaleAttemptError
from km_registry.events import RedisNotifier
from km_registry.jobs import QUEUE_NAME
from km_registry.processes import die_with_parent
from km_registry.registry import Registry
from km_registry.types import Job
from trainer_worker.config import TrainerSettings

_log = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0


class JobInterrupted(BaseException):
    """The worker is being stopped; the job goes back to the queue. No `except Exception` may swallow it."""


def run_job(job_id: str) -> None:
    """Train one job in this process, from claim to publication. Called by RQ in the child it forked."""
    die_with_parent(os.getppid())
    settings = TrainerSettings()
    redis = Redis.from_url(_redis_url(settings))
    with Registry.open(settings, RedisNotifier(redis)) as registry:
        job = registry.claim(job_id)
        if job is None:
            _log.info("job is no longer waiting", job=job_id)
            return
        with _interruptible(), _heartbeat(registry, job):
            _run_claimed(registry, settings, job)


def _run_claimed(registry: Registry, settings: TrainerSettings, job: Job) -> None:
    from trainer_worker.pipeline import train_km

    try:
        km = train_km(registry, settings, job)
        _log.info("published", job=job.id, km=km.id)
    except (StaleAttemptError, NotFoundError):
        _log.info("job was taken away", job=job.id, attempt=job.attempt)
    except JobInterrupted:
        registry.release(job.id, job.attempt)
        _log.info("job handed back", job=job.id)
    except Exception as error:  # noqa: BLE001  whatever failed must be said in the job row
        _log.exception("job failed", job=job.id)
        _fail(registry, job.id, job.attempt, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, KMError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to train this document; lower batch_tokens in the recipe"
    return f"{type(error).__name__}: {error}"


def _fail(registry: Registry, job_id: str, attempt: int, reason: str) -> None:
    try:
        registry.fail(job_id, attempt, reason)
    except (StaleAttemptError, NotFoundError):
        _log.info("job was taken away", job=job_id, attempt=attempt)


@contextmanager
def _interruptible() -> Iterator[None]:
    def interrupt(_number: int, _frame: Any) -> None:
        raise JobInterrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _heartbeat(registry: Registry, job: Job) -> Iterator[None]:
    """Tell the row that we live; leave at once when the attempt no longer owns it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            try:
                registry.heartbeat(job.id, job.attempt)
            except (StaleAttemptError, NotFoundError):
                # Cancelled or taken over: nothing we could still write is wanted, and a matrix product
                # cannot be interrupted from Python.
                _log.info("job was taken away; leaving", job=job.id)
                os._exit(0)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _redis_url(settings: TrainerSettings) -> str:
    if not settings.redis_url:
        raise KMError("No Redis is named. Set REDIS_URL, or let `km serve` start the worker.")
    return settings.redis_url


class KMWorker(Worker):
    """An RQ worker that hands its running job back when it is stopped, instead of waiting for its end."""

    grace_s = 3.0

    def request_stop(self, signum: Any, frame: Any) -> None:
        """On the first SIGTERM or SIGINT: interrupt the child, so that it releases its job, and leave."""
        pid = self.horse_pid
        if pid:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                _log.info("the job ended by itself", pid=pid)
            else:
                killer = threading.Timer(self.grace_s, self.kill_horse)
                killer.daemon = True
                killer.start()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


def work(settings: TrainerSettings) -> None:
    """Take jobs one after the other until SIGTERM."""
    redis = Redis.from_url(_redis_url(settings))

    def killed(rq_job: RqJob, _pid: int, status: int, _usage: Any) -> None:
        _record_killed(settings, redis, rq_job, status)

    worker = KMWorker(
        [Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)],
        connection=redis,
        serializer=JSONSerializer,
        work_horse_killed_handler=killed,
    )
    worker.grace_s = settings.shutdown_grace
    worker.work(logging_level="WARNING")


def _record_killed(settings: TrainerSettings, redis: Redis, rq_job: RqJob, status: int) -> None:
    """The child died without a word: the row must say so, unless the job was cancelled or handed back."""
    job_id = str(rq_job.args[0])
    with Registry.open(settings, RedisNotifier(redis)) as registry:
        try:
            job = registry.job(job_id)
        except NotFoundError:
            return
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        how = f"by signal {number}" if number else f"with status {status}"
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        _fail(registry, job_id, job.attempt, f"the training process was ended {how}{hint}")
