"""Which job is next: every owner's turn comes round, however many documents one of them has waiting.

What failed for a passing reason waits for its time before its turn, longer each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, or_, select, true

from km_registry.errors import ConflictError
from km_registry.store import audit, handover
from km_registry.store.access import require
from km_registry.store.jobs import LONGEST_WAIT, fenced_update, mark_failed, purge_work, storable
from km_registry.store.rows import as_job
from km_registry.store.store import Store
from km_registry.tables import DocumentRow, JobRow
from km_registry.types import DEFAULT_QUEUE, Action, Job, JobState, Principal, Priority

#: The queue that a job's recipe names.
_QUEUE = func.coalesce(JobRow.recipe["queue"].as_string(), DEFAULT_QUEUE)


def waiting(store: Store, limit: int | None = None, queues: Collection[str] | None = None) -> list[Job]:
    """The jobs that may begin now, in the order of their turns; only those of some queues, if named.

    An owner's jobs are ordered by priority, then by age. Those that run count as turns taken, so that an
    owner whose documents fill the workers comes after one who has none in training. Of like turns the older
    is first. A job that failed for a passing reason waits until its time has come.
    """
    running = (
        select(DocumentRow.owner_id, func.count().label("count"))
        .join(JobRow, JobRow.document_id == DocumentRow.id)
        .where(JobRow.state == JobState.RUNNING)
        .group_by(DocumentRow.owner_id)
        .subquery()
    )
    own_order = func.row_number().over(
        partition_by=DocumentRow.owner_id, order_by=(JobRow.priority.desc(), JobRow.sequence)
    )
    served = true() if queues is None else _QUEUE.in_(queues)
    turns = (
        select(JobRow.sequence, (own_order + func.coalesce(running.c.count, 0)).label("turn"))
        .join(DocumentRow, DocumentRow.id == JobRow.document_id)
        .outerjoin(running, running.c.owner_id == DocumentRow.owner_id)
        .where(JobRow.state == JobState.QUEUED, served)
    )
    with store.database.reading() as session:
        due = turns.where(_due(store.database.moment(session))).subquery()
        query = (
            select(JobRow)
            .join(due, due.c.sequence == JobRow.sequence)
            .order_by(due.c.turn, JobRow.sequence)
            .limit(limit)
        )
        return [as_job(row) for row in session.scalars(query)]


def by_queue(store: Store) -> Mapping[str, int]:
    """How many jobs wait in each queue where any does."""
    # Grouped outside, where the queue is a column: PostgreSQL takes the same expression twice for two.
    queues = select(_QUEUE.label("name")).where(JobRow.state == JobState.QUEUED).subquery()
    query = select(queues.c.name, func.count()).group_by(queues.c.name)
    with store.database.reading() as session:
        return dict(session.execute(query).all())


def _due(moment: datetime) -> ColumnElement[bool]:
    # What waits for longer than any retry does was put off before the clock was set back.
    far = JobRow.not_before > moment + LONGEST_WAIT
    return or_(JobRow.not_before.is_(None), JobRow.not_before <= moment, far)


def prioritise(store: Store, principal: Principal, document_id: str, priority: Priority) -> Job:
    """Have the document's waiting job come before or after its owner's others. ConflictError: none waits."""
    with (
        audit.refusals(store, principal, "document.prioritise", document_id),
        store.transaction() as transaction,
    ):
        require(transaction.session, principal, Action.TRAIN, document_id)
        audit.note(transaction.session, principal, "document.prioritise", document_id)
        waits = select(JobRow).where(JobRow.document_id == document_id, JobRow.state == JobState.QUEUED)
        row = transaction.session.scalars(waits.with_for_update()).one_or_none()
        if row is None:
            raise ConflictError("no training of this document waits for its turn; there is nothing to order")
        row.priority = priority
        return as_job(row)


def put_off(store: Store, job_id: str, attempt: int, reason: str, keep: Collection[str] | None) -> Job:
    """Queue the job again for a later attempt, which gets what is named (None: all); fail it after too many
    of these."""
    job = _put_off(store, job_id, attempt, reason, keep)
    if job.state.finished:
        handover.ended(store, job.document_id, job_id)
    return job


def _put_off(store: Store, job_id: str, attempt: int, reason: str, keep: Collection[str] | None) -> Job:
    settings = store.settings
    with store.transaction() as transaction:
        row = fenced_update(transaction, job_id, attempt)
        if row.retries >= settings.retries:
            mark_failed(
                store, transaction, row, f"{reason} (attempts that failed so: {row.retries + 1})", keep or ()
            )
            return as_job(row)
        wait = min(timedelta(seconds=settings.retry_seconds) * 2**row.retries, LONGEST_WAIT)
        row.state, row.held_by, row.error = JobState.QUEUED, None, storable(reason)
        row.retries, row.not_before = row.retries + 1, transaction.moment() + wait
        told = {"attempt": attempt, "reason": row.error, "not_before": row.not_before.isoformat()}
        transaction.emit(row.document_id, job_id, "queued", told)
        # While the row is held: no other attempt can have begun.
        if keep is not None:
            purge_work(store, job_id, keep)
        return as_job(row)
