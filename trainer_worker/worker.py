"""Runs jobs from the queue: claim, train, finish. Knows nothing of training.

RQ forks a child for every job, so a crash or an out-of-memory kill there takes no worker down. The child
claims the job's row, and then further waiting ones to train together with it. What RQ knows is only the job
it was started for; the rows say which run holds them, and once the child has ended, however it did, its
worker sees to those that it still held.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Self

import psutil
import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker, get_current_job
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus
from sqlalchemy.exc import SQLAlchemyError

from km_registry.errors import KMError
from km_registry.events import RedisNotifier
from km_registry.jobs import RqJobQueue, queue_name, reconcile
from km_registry.processes import die_with_parent
from km_registry.redis_connection import open_redis
from km_registry.registry import Registry
from km_registry.tracing import NO_SPAN, Span, Tracing
from km_registry.types import Job
from km_registry.workers import HEARTBEAT_S
from trainer_worker.attempts import Attempts
from trainer_worker.clock import WorkerClock
from trainer_worker.config import TrainerSettings
from trainer_worker.installation import check_installation

_log = structlog.get_logger(__name__)


class JobInterrupted(BaseException):
    """The worker is being stopped; its jobs go back to the queue. No `except Exception` may swallow it."""


def run_job(job_id: str) -> None:
    """Train a job and what waits beside it in this process, from claim to publication.

    Called by RQ in the child it forked.
    """
    die_with_parent(os.getppid())
    settings = TrainerSettings()
    redis = open_redis(_redis_url(settings))
    entry = get_current_job()
    tracing = Tracing.to(settings.otlp_endpoint, "km-worker")
    # A SIGTERM waits until the job is ours to hand back: it must not end us with the row left running.
    with (
        # Closed last: a job that is handed back must not wait for a collector.
        closing(tracing),
        Registry.open(settings, RedisNotifier(redis)) as registry,
        _Interruptions() as interruptions,
        Attempts(
            registry,
            entry.id if entry else job_id,
            partial(_begun, tracing, redis),
            queues=settings.queues,
        ) as attempts,
    ):
        if attempts.claim_next(job_id) is None:
            _log.info("no job is waiting any more", job=job_id)
            return
        _train(registry, settings, attempts, interruptions, redis)


def _begun(tracing: Tracing, redis: Redis, job: Job) -> Span:
    """The span of a claimed attempt, in the trace of the request that had it queued, where that is known."""
    if not tracing.is_on:
        return NO_SPAN
    try:
        before = RqJobQueue(redis).traceparent_of(job)
    except RedisError as error:
        _log.info("an attempt begins a trace of its own", job=job.id, error=type(error).__name__)
        before = None
    ids = {"job_id": job.id, "document_id": job.document_id}
    return tracing.begin("train", before, kind="consumer", attempt=job.attempt, **ids)


def _train(
    registry: Registry,
    settings: TrainerSettings,
    attempts: Attempts,
    interruptions: _Interruptions,
    redis: Redis,
) -> None:
    from trainer_worker.pipeline import train_kms

    try:
        with interruptions.allowed():
            train_kms(
                registry, settings, attempts, idle_workers=lambda: _idle_workers(redis, settings.queues)
            )
    except JobInterrupted:
        attempts.release()


def _idle_workers(redis: Redis, queues: Iterable[str]) -> int:
    """Workers of these queues that have nothing to do: what waits is theirs before it is a busy one's. None
    while Redis is away: then nobody is given anything by it, and a training needs it for nothing else."""
    try:
        workers = {
            worker.name: worker
            for queue in _queues(redis, queues)
            for worker in Worker.all(queue=queue, serializer=JSONSerializer)
        }
        return sum(one.get_state() == WorkerStatus.IDLE and _may_live(one) for one in workers.values())
    except RedisError as error:
        _log.warning("Redis is away; training goes on", error=type(error).__name__)
        return 0


def _may_live(worker: BaseWorker) -> bool:
    # Redis remembers one that was killed for minutes.
    return worker.hostname != socket.gethostname() or psutil.pid_exists(worker.pid or 0)


def _queues(redis: Redis, labels: Iterable[str]) -> list[Queue]:
    return [Queue(queue_name(label), connection=redis, serializer=JSONSerializer) for label in labels]


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


def _redis_url(settings: TrainerSettings) -> str:
    if not settings.redis_url:
        raise KMError("No Redis is named. Set REDIS_URL, or let `km serve` start the worker.")
    return settings.redis_url


class KMWorker(Worker):
    """An RQ worker that hands its running job back when it is stopped, instead of waiting for its end."""

    grace_s = 3.0
    #: Whether it was told to stop: a child that dies from then on has not crashed.
    stopping = False
    #: Whether the present child was killed on purpose: then it has not crashed either.
    killed = False
    #: How the last child ended, as waitpid says it.
    ended_with: int | None = None
    #: Told of every run that has ended; the second argument says how it crashed, None when it did not.
    on_ended: Callable[[str, str | None], None]
    #: Called with every heartbeat.
    on_heartbeat: Callable[[], None] = staticmethod(lambda: None)
    #: Whether it takes no jobs now; asked before each.
    is_held_back: Callable[[], bool] = staticmethod(lambda: False)

    def check_for_suspension(self, burst: bool) -> None:
        """Wait here while no job may be taken, alive and idle."""
        super().check_for_suspension(burst)
        while not self._stop_requested and self.is_held_back():
            self.set_state(WorkerStatus.SUSPENDED)
            self.heartbeat()
            time.sleep(5)  # a signal to stop ends it

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Say that the worker lives, whether it is idle or its child trains."""
        super().heartbeat(timeout, pipeline)
        self.on_heartbeat()

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait for the child, and note how it ended."""
        ended: tuple[int | None, int | None, Any] = super().wait_for_horse()
        self.ended_with = ended[1]
        return ended

    def monitor_work_horse(self, job: RqJob, queue: Queue) -> None:
        """Wait for the child, then see to the jobs that it still held."""
        self.ended_with = None
        super().monitor_work_horse(job, queue)
        self.on_ended(job.id, None if self.stopping or self.killed else how_it_crashed(self.ended_with))

    def request_stop(self, signum: Any, frame: Any) -> None:
        """On the first SIGTERM or SIGINT: interrupt the child, so that it releases its job, and leave."""
        self.stopping = True
        self._interrupt_horse()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def fork_work_horse(self, job: RqJob, queue: Queue) -> None:
        """Start the child; one that was begun while the stop came in is interrupted as well."""
        self.killed = False
        super().fork_work_horse(job, queue)
        if self.stopping:
            self._interrupt_horse()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the child: a job is to be stopped that it does not let go of, or it does not end in time."""
        self.killed = True
        super().kill_horse(sig)

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


def how_it_crashed(status: int | None) -> str:
    """What the user is told of a child that ended without a word; `status` as waitpid says it."""
    code = os.waitstatus_to_exitcode(status or 0)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"the training process was ended {how}{hint}"


def work(settings: TrainerSettings) -> None:
    """Take jobs one after the other until SIGTERM."""
    redis = open_redis(_redis_url(settings))
    # Closed at once, since a connection must not be carried over a fork. The children and we open it faster
    # from here on: everything is imported, and the tables are up to date.
    registry = check_installation(settings)
    worker = KMWorker(
        _queues(redis, settings.queues),
        name=f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}",
        connection=redis,
        serializer=JSONSerializer,
        # Between two looks at an empty queue there are 15 seconds less than this.
        worker_ttl=HEARTBEAT_S + 15,
        job_monitoring_interval=HEARTBEAT_S,
    )
    worker.grace_s = settings.shutdown_grace
    worker.is_held_back = WorkerClock(registry, redis, lease_s=settings.lease_seconds).is_off
    if registry.has_shared_store:
        worker.on_heartbeat = partial(_sweep, registry)
    worker.on_ended = lambda run_id, crash: end_run(settings, redis, run_id, crash)
    worker.work(logging_level="WARNING")


def _sweep(registry: Registry) -> None:
    """Remove what lies here of documents that another machine deleted."""
    try:
        with registry:
            registry.sweep()
    except (SQLAlchemyError, OSError) as error:
        _log.warning("copies not swept; will try again", error=type(error).__name__)


def end_run(settings: TrainerSettings, redis: Redis, run_id: str, crash: str | None) -> None:
    """A child has ended: what it still held is queued again at once, or given up."""
    with Registry.open(settings, RedisNotifier(redis)) as registry:
        registry.end_run(run_id, crash=crash)
        reconcile(registry, RqJobQueue(redis, registry))
