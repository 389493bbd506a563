"""Who trains, and what waits for somebody who would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from redis.exceptions import RedisError

from km_registry.jobs import JobQueue
from km_registry.types import DEFAULT_QUEUE, Job, JobState, WorkerSeen
from server.schemas import JobOut


def told(queue: JobQueue, job: Job) -> JobOut:
    """The job, with what it waits for when nobody serves its queue. Blocking."""
    out = JobOut.model_validate(job)
    if job.state is JobState.QUEUED and job.queue != DEFAULT_QUEUE:
        out.waits_for = _missing(queue, job.queue)
    return out


def by_queue(workers: Iterable[WorkerSeen]) -> Mapping[tuple[str, str], int]:
    """How many workers serve each queue and are idle or busy."""
    return Counter(
        (queue, "idle" if one.run_id is None else "busy") for one in workers for queue in one.queues
    )


def unserved(waiting: Mapping[str, int], queues: Iterable[str]) -> Mapping[str, int]:
    """How many jobs wait in each queue that none of those who serve `queues` would take."""
    served = set(queues)
    return {name: count for name, count in sorted(waiting.items()) if name not in served}


def _missing(queue: JobQueue, name: str) -> str | None:
    try:
        served = any(name in one.queues for one in queue.workers())
    except RedisError:
        return None  # who serves is not known now
    return (
        None if served else f"a worker that serves the queue {name} (km worker --queue {name}); none is there"
    )
