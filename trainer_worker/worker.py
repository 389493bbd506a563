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
from typing import Any, Self

import structlog
from redis import Redis
from rq import Queue, Worker
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from sqlalchemy.exc import OperationalError

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
    # A SIGTERM waits until the job is ours to hand back: it must not end us with the row left running.
    with Registry.open(settings, RedisNotifier(redis)) as registry, _Interruptions() as interruptions:
        job = registry.claim(job_id)
        if job is None:
            _log.info("job is no longer waiting", job=job_id)
            return
        with _heartbeat(registry, job):
            _run_claimed(registry, settings, job, interruptions)


def _run_claimed(
    registry: Registry, settings: TrainerSettings, job: Job, interruptions: _Interruptions
) -> None:
    from trainer_worker.pipeline import train_km

    try:
        with interruptions.allowed():
            km = train_km(registry, settings, job)
        _log.info("published", job=job.id, km=km.id)
    except (StaleAttemptError, NotFoundError):
        _log.info("job was taken away", job=job.id, attempt=job.attempt)
    except JobInterrupted:
        _release(registry, job.id, job.attempt)
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


def _release(registry: Registry, job_id: str, attempt: int) -> None:
    try:
        registry.release(job_id, attempt)
    except (StaleAttemptError, NotFoundError):
        _log.info("job was taken away", job=job_id, attempt=attempt)
    else:
        _log.info("job handed back", job=job_id)


class _Interruptions:
    """Within it SIGTERM waits, except within `allowed`, where the first one raises JobInterrupted.

    Not done by a signal mask: the kernel would deliver the signal to any thread that has none.
    """

    def __init__(self) -> None:
        self._wanted = self._allowed = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(self, *_raised: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Where JobInterrupted may be raised; also for a signal that came before."""
        self._allowed = True
        try:
            self._raise_if_due()
            yield
        finally:
            self._allowed = False

    def _interrupt(self, _number: int, _frame: Any) -> None:
        self._wanted = True
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._wanted and self._allowed:
            self._allowed = False
            raise JobInterrupted


@contextmanager
def _heartbeat(registry: Registry, job: Job) -> Iterator[None]:
    """Tell the row that we live; leave at once when the attempt no longer owns it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            try:
                registry.heartbeat(job.id, job.attempt)
            except OperationalError as error:
                # The database is busy or away for a moment; the row stays ours for many beats.
                _log.warning("heartbeat missed", job=job.id, error=str(error.orig))
            except (StaleAttemptError, NotFoundError):
                # It may be we who ended it a moment ago, in which case we end by ourselves.
                if done.wait(HEARTBEAT_S):
                    return
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
    #: Whether it was told to stop: a child that dies from then on has not failed.
    stopping = False

    def request_stop(self, signum: Any, frame: Any) -> None:
        """On the first SIGTERM or SIGINT: interrupt the child, so that it releases its job, and leave."""
        self.stopping = True
        self._interrupt_horse()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def fork_work_horse(self, job: RqJob, queue: Queue) -> None:
        """Start the child; one that was begun while the stop came in is interrupted as well."""
        super().fork_work_horse(job, queue)
        if self.stopping:
            self._interrupt_horse()

    def _interrupt_horse(self) -> None:
        pid = self.horse_pid
        if not pid:
            return
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            _log.info("the job ended by itself", pid=pid)
            return
        killer = threading.Timer(self.grace_s, self._kill_unless_ended, [pid])
        killer.daemon = True
        killer.start()

    def _kill_unless_ended(self, pid: int) -> None:
        # Once the child has ended horse_pid is 0, and RQ's kill_horse would kill our own process group.
        if self.horse_pid == pid:
            self.kill_horse()


def work(settings: TrainerSettings) -> None:
    """Take jobs one after the other until SIGTERM."""
    redis = Redis.from_url(_redis_url(settings))

    def killed(rq_job: RqJob, _pid: int, status: int, _usage: Any) -> None:
        _record_killed(settings, redis, rq_job, status, stopping=worker.stopping)

    worker = KMWorker(
        [Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)],
        connection=redis,
        serializer=JSONSerializer,
        work_horse_killed_handler=killed,
    )
    worker.grace_s = settings.shutdown_grace
    worker.work(logging_level="WARNING")


def _record_killed(
    settings: TrainerSettings, redis: Redis, rq_job: RqJob, status: int, *, stopping: bool = False
) -> None:
    """The child died without a word: the row must say so, unless the job was cancelled or handed back."""
    job_id = str(rq_job.args[0])
    # The id ends in the attempt before the child's claim. The row's own attempt may be another worker's.
    attempt = int(rq_job.id.rpartition("-")[2]) + 1
    with Registry.open(settings, RedisNotifier(redis)) as registry:
        if stopping:
            _release(registry, job_id, attempt)
            return
        code = os.waitstatus_to_exitcode(status)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        _fail(registry, job_id, attempt, f"the training process was ended {how}{hint}")
