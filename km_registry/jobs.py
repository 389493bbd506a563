"""The queue that has workers execute jobs. The job row is the truth; only its id goes through the queue, and
which trace the request that queued it belongs to."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Protocol

from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from km_registry import workers
from km_registry.tracing import traceparent
from km_registry.types import DEFAULT_QUEUE, Job, Run, WorkerSeen

QUEUE_NAME = "km-train"
#: Named by a string: the registry does not import the worker.
WORKER_FUNCTION = "trainer_worker.worker.run_job"
_TRACE = "traceparent"
_FAILURE_SECONDS = 24 * 3600
#: Longest wait for a child that was told to end; RQ kills it at once.
_STOP_SECONDS = 5.0
#: Longest wait for a child to let go of one job of several, before it is ended and the others begin anew.
_LET_GO_SECONDS = 1.5
_POLL_SECONDS = 0.05
#: Longer than a worker's child ever takes from the queue to claiming the job's row, waiting for a database
#: that is busy or away for a moment included: two children must not have one entry.
_CLAIM_SECONDS = 60
_REMEMBERED_SECONDS = 600
_OVER = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)


def queue_name(label: str, name: str = QUEUE_NAME) -> str:
    """What RQ calls the queue of this label."""
    return name if label == DEFAULT_QUEUE else f"{name}.{label}"


class JobQueue(Protocol):
    """Hands job ids to workers, at least once, in order."""

    def enqueue(self, job: Job) -> None:
        """Have the job's present attempt executed. Twice is as good as once."""
        ...

    def stop(self, job_id: str) -> None:
        """Take the job out of the queue, or have the worker's child that runs it let go of it, by force if
        need be, and wait until it has.

        For a job that was taken away from its attempt in the registry before. Unknown ids are ignored.
        """
        ...

    def waiting(self) -> list[str]:
        """Ids of the jobs that no worker has taken yet, oldest first in each queue."""
        ...

    def workers(self) -> list[WorkerSeen]:
        """The workers that were heard of lately, by name."""
        ...


class UnfinishedJobs(Protocol):
    """What reconciling needs of the registry."""

    def unfinished_jobs(self) -> list[Job]:
        """Jobs that wait for a worker."""
        ...


class Runs(Protocol):
    """What stopping needs of the registry."""

    def run_of(self, job_id: str) -> Run | None:
        """The run that holds the job."""
        ...


def reconcile(registry: UnfinishedJobs, queue: JobQueue) -> int:
    """Enqueue every job that waits for a worker, since the queue may have lost it; how many there are."""
    jobs = registry.unfinished_jobs()
    for job in jobs:
        queue.enqueue(job)
    return len(jobs)


class MemoryJobQueue:
    """A queue in this process, for unit tests; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, int], None] = {}
        #: Ids that were stopped, in order.
        self.stopped: list[str] = []
        #: Who is said to work.
        self.present: list[WorkerSeen] = []

    def enqueue(self, job: Job) -> None:
        """See JobQueue."""
        with self._lock:
            self._waiting.setdefault((job.id, job.attempt))

    def stop(self, job_id: str) -> None:
        """See JobQueue."""
        with self._lock:
            self.stopped.append(job_id)
            for key in [key for key in self._waiting if key[0] == job_id]:
                del self._waiting[key]

    def waiting(self) -> list[str]:
        """See JobQueue."""
        with self._lock:
            return [job_id for job_id, _ in self._waiting]

    def workers(self) -> list[WorkerSeen]:
        """See JobQueue."""
        return self.present

    def take(self) -> str | None:
        """The next job's id, taken out of the queue, as a worker would."""
        with self._lock:
            key = next(iter(self._waiting), None)
            if key is None:
                return None
            del self._waiting[key]
            return key[0]


class RqJobQueue:
    """RQ on Redis: a worker's child process for every job, which may take further jobs from the registry.

    `runs` knows which child holds which jobs; without it each child has the job it was started for.
    """

    def __init__(
        self,
        redis: Redis,
        runs: Runs | None = None,
        *,
        name: str = QUEUE_NAME,
        function: str = WORKER_FUNCTION,
        claim_seconds: float = _CLAIM_SECONDS,
    ) -> None:
        self._redis = redis
        self._claim_seconds = claim_seconds
        self._runs = runs
        self._function = function
        self._name = name

    def enqueue(self, job: Job) -> None:
        """See JobQueue."""
        rq_id = f"{job.id}-{job.attempt}"
        try:
            self._enqueue(job, rq_id)
        except DuplicateJobError:
            if self._remove_if_lost(job, rq_id):
                # Another server may have seen it too, and been faster.
                with suppress(DuplicateJobError):
                    self._enqueue(job, rq_id)

    def stop(self, job_id: str) -> None:
        """See JobQueue."""
        for queue in self._queues():
            for rq_id in queue.get_job_ids():
                if _job_id(rq_id) == job_id:
                    self._delete(queue, rq_id)
        if self._runs is None:
            self._end([rq_id for rq_id in self._started() if _job_id(rq_id) == job_id])
        else:
            self._make_let_go(self._runs, job_id)

    def waiting(self) -> list[str]:
        """See JobQueue."""
        return [_job_id(rq_id) for queue in self._queues() for rq_id in queue.get_job_ids()]

    def workers(self) -> list[WorkerSeen]:
        """See JobQueue."""
        return workers.seen(self._redis)

    def traceparent_of(self, job: Job) -> str | None:
        """What continues the trace of the request that had the claimed job's attempt queued; None when it is
        not known."""
        try:
            entry = RqJob.fetch(
                f"{job.id}-{job.attempt - 1}", connection=self._redis, serializer=JSONSerializer
            )
        except NoSuchJobError:
            return None
        found = entry.meta.get(_TRACE)
        return found if isinstance(found, str) else None

    def _make_let_go(self, runs: Runs, job_id: str) -> None:
        run = runs.run_of(job_id)
        if run is None:
            return
        if len(run.job_ids) > 1:
            # The child notices by itself, at its next heartbeat, and goes on with the others.
            run = _last_holder(runs, job_id, _LET_GO_SECONDS)
        if run is not None:
            self._end([run.id])

    def _started(self) -> list[str]:
        return [
            rq_id
            for queue in self._queues()
            for rq_id in StartedJobRegistry(queue=queue).get_job_ids(cleanup=False)
        ]

    def _queues(self) -> list[Queue]:
        """Every queue that ever had an entry, the default one first."""
        known: list[Queue] = Queue.all(connection=self._redis, serializer=JSONSerializer)
        names = {queue.name for queue in known if queue.name.startswith(f"{self._name}.")}
        return [self._queue(name) for name in (self._name, *sorted(names))]

    def _queue(self, name: str) -> Queue:
        return Queue(name, connection=self._redis, serializer=JSONSerializer)

    def _end(self, rq_ids: list[str]) -> None:
        """End the children of these entries, and wait until they have: what they write later would outlive a
        purge. RQ has no event for it. A worker that died with its child says nothing, hence the limit."""
        for rq_id in rq_ids:
            try:
                send_stop_job_command(self._redis, rq_id, serializer=JSONSerializer)
            except (NoSuchJobError, InvalidJobOperation):
                # It ended in this very moment, which is what was wanted.
                continue
        deadline = time.monotonic() + _STOP_SECONDS
        while set(rq_ids) & set(self._started()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _enqueue(self, job: Job, rq_id: str) -> None:
        trace = traceparent()
        self._queue(queue_name(job.queue, self._name)).enqueue_call(
            self._function,
            args=(job.id,),
            job_id=rq_id,
            timeout=-1,
            result_ttl=0,
            failure_ttl=_FAILURE_SECONDS,
            unique=True,
            meta={_TRACE: trace} if trace else None,
        )

    def _remove_if_lost(self, job: Job, rq_id: str) -> bool:
        """Remove RQ's entry of a job whose row waits for a worker, if no worker will ever claim it."""
        queue = self._queue(queue_name(job.queue, self._name))
        try:
            entry = RqJob.fetch(rq_id, connection=self._redis, serializer=JSONSerializer)
            # Over: the child died before it claimed.
            if entry.get_status() in _OVER or self._left_unclaimed(queue, rq_id):
                entry.delete()
                queue.intermediate_queue.remove(rq_id)
                return True
        except NoSuchJobError:
            return True
        return False

    def _left_unclaimed(self, queue: Queue, rq_id: str) -> bool:
        """Whether the entry has been out of the queue for longer than a worker needs to claim the row.

        So it is left by a worker that was killed between the two, or by an enqueuing that was: RQ would
        notice a quarter of an hour later. The age is the key's, by the clock of Redis alone.
        """
        seen = f"km:unclaimed:{rq_id}"
        if self._redis.lpos(queue.key, rq_id) is not None:
            self._redis.delete(seen)
            return False
        if self._redis.set(seen, 1, nx=True, ex=_REMEMBERED_SECONDS):
            return False
        left_ms = self._redis.pttl(seen)
        if left_ms > (_REMEMBERED_SECONDS - self._claim_seconds) * 1000:
            return False
        self._redis.delete(seen)
        return True

    def _delete(self, queue: Queue, rq_id: str) -> None:
        try:
            RqJob.fetch(rq_id, connection=self._redis, serializer=JSONSerializer).delete()
        except NoSuchJobError:
            queue.remove(rq_id)


def _job_id(rq_id: str) -> str:
    return rq_id.rpartition("-")[0]


def _last_holder(runs: Runs, job_id: str, seconds: float) -> Run | None:
    """The run that still holds the job after so long a wait; None as soon as none does."""
    deadline = time.monotonic() + seconds
    while (run := runs.run_of(job_id)) is not None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)  # the row is another process's, which cannot wake us
    return run
