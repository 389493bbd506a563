"""The queue that has workers execute jobs. The job row is the truth; only its id goes through the queue."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from km_registry.types import Job

QUEUE_NAME = "km-train"
#: Named by a string: the registry does not import the worker.
WORKER_FUNCTION = "trainer_worker.worker.run_job"
_FAILURE_SECONDS = 24 * 3600
#: Longest wait for a child that was told to end; RQ kills it at once.
_STOP_SECONDS = 5.0
_OVER = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)


class JobQueue(Protocol):
    """Hands job ids to workers, at least once, in order."""

    def enqueue(self, job: Job) -> None:
        """Have the job's present attempt executed. Twice is as good as once."""
        ...

    def stop(self, job_id: str) -> None:
        """Take the job out of the queue, or end the worker's child that runs it and wait until it has ended.

        Unknown ids are ignored.
        """
        ...

    def waiting(self) -> list[str]:
        """Ids of the jobs that no worker has taken yet, oldest first."""
        ...


class UnfinishedJobs(Protocol):
    """What reconciling needs of the registry."""

    def unfinished_jobs(self) -> list[Job]:
        """Jobs that wait for a worker."""
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

    def take(self) -> str | None:
        """The next job's id, taken out of the queue, as a worker would."""
        with self._lock:
            key = next(iter(self._waiting), None)
            if key is None:
                return None
            del self._waiting[key]
            return key[0]


class RqJobQueue:
    """RQ on Redis: a worker's child process for every job, which `stop` can end."""

    def __init__(self, redis: Redis, *, name: str = QUEUE_NAME, function: str = WORKER_FUNCTION) -> None:
        self._redis = redis
        self._function = function
        self._queue = Queue(name, connection=redis, serializer=JSONSerializer)

    def enqueue(self, job: Job) -> None:
        """See JobQueue."""
        rq_id = f"{job.id}-{job.attempt}"
        try:
            self._enqueue(job.id, rq_id)
        except DuplicateJobError:
            if self._remove_if_over(rq_id):
                self._enqueue(job.id, rq_id)

    def stop(self, job_id: str) -> None:
        """See JobQueue."""
        for rq_id in self._own(self._queue.get_job_ids(), job_id):
            self._delete(rq_id)
        for rq_id in self._running(job_id):
            try:
                send_stop_job_command(self._redis, rq_id, serializer=JSONSerializer)
            except (NoSuchJobError, InvalidJobOperation):
                # It ended in this very moment, which is what was wanted.
                continue
        self._await_end(job_id)

    def waiting(self) -> list[str]:
        """See JobQueue."""
        return [rq_id.rpartition("-")[0] for rq_id in self._queue.get_job_ids()]

    def _running(self, job_id: str) -> list[str]:
        return self._own(StartedJobRegistry(queue=self._queue).get_job_ids(cleanup=False), job_id)

    def _await_end(self, job_id: str) -> None:
        """Until the child has gone: what it writes later would outlive the purge. RQ has no event for it.

        A worker that died with its child never says so, hence the limit.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        while self._running(job_id) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _enqueue(self, job_id: str, rq_id: str) -> None:
        self._queue.enqueue_call(
            self._function,
            args=(job_id,),
            job_id=rq_id,
            timeout=-1,
            result_ttl=0,
            failure_ttl=_FAILURE_SECONDS,
            unique=True,
        )

    def _remove_if_over(self, rq_id: str) -> bool:
        # The row waits for a worker although RQ is through with this entry: the child died before it claimed.
        try:
            entry = RqJob.fetch(rq_id, connection=self._redis, serializer=JSONSerializer)
            if entry.get_status() not in _OVER:
                return False
            entry.delete()
        except NoSuchJobError:
            return True
        return True

    def _delete(self, rq_id: str) -> None:
        try:
            RqJob.fetch(rq_id, connection=self._redis, serializer=JSONSerializer).delete()
        except NoSuchJobError:
            self._queue.remove(rq_id)

    @staticmethod
    def _own(rq_ids: list[str], job_id: str) -> list[str]:
        return [rq_id for rq_id in rq_ids if rq_id.rpartition("-")[0] == job_id]
