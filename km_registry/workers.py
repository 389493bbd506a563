"""Workers as RQ's own registry of them tells: their heartbeats, what they serve, what they execute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from redis import Redis
from rq import Worker
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from km_registry.types import DEFAULT_QUEUE, WorkerSeen

#: Seconds between two heartbeats of a worker, at most.
HEARTBEAT_S = 10
#: A worker that was silent for so long is gone.
_SILENT = timedelta(seconds=3 * HEARTBEAT_S)


def seen(redis: Redis) -> list[WorkerSeen]:
    """The workers that were heard of lately, by name."""
    present = datetime.now(UTC)
    found = [_as_seen(one) for one in Worker.all(connection=redis, serializer=JSONSerializer)]
    return sorted(
        (one for one in found if one is not None and abs(present - one.seen_at) < _SILENT),
        key=lambda one: one.name,
    )


def _as_seen(worker: BaseWorker) -> WorkerSeen | None:
    if worker.last_heartbeat is None or worker.birth_date is None:
        return None  # it ended in this very moment
    job = worker.get_current_job()
    since = job.started_at if job is not None and job.started_at is not None else worker.birth_date
    # RQ's name of a queue is one name for all, and behind a dot the label.
    labels = (name.partition(".")[2] or DEFAULT_QUEUE for name in worker.queue_names())
    return WorkerSeen(
        name=worker.name,
        host=worker.hostname or "",
        queues=tuple(labels),
        run_id=worker.get_current_job_id(),
        since=_utc(since),
        seen_at=_utc(worker.last_heartbeat),
    )


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
